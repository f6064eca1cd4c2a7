// Keeps what is drawn as it was while nothing in it changes, so that an answer costs what it changed. Pure but for
// what it remembers.

/** Something that is drawn, and where. */
export interface Shown {
  id: string;
  top: number;
  bottom: number;
  /** Its shape: a change of it is shown at once, wherever it is. */
  path: string;
}

/** What nobody sees is brought up to date once in so many answers. */
const TURNS = 8;

const isSame = <T extends object>(one: T, other: T): boolean => {
  for (const key in one) if (one[key] !== other[key]) return false;
  return true;
};

export class Steady<T extends Shown> {
  #last = new Map<string, T>();
  #turn = 0;

  /** The same objects as before for all that looks as before, or isn't seen and isn't due. */
  keep(now: T[], isSeen: (one: T) => boolean): T[] {
    this.#turn += 1;
    const kept = now.map((one, at) => {
      const last = this.#last.get(one.id);
      if (!last || last.path !== one.path) return one;
      if (isSame(last, one)) return last;
      return isSeen(one) || (at + this.#turn) % TURNS === 0 ? one : last;
    });
    this.#last = new Map(kept.map((one) => [one.id, one]));
    return kept;
  }
}
