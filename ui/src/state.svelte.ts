// What the page knows now, and where it is. Asks only while somebody looks.
import { type Cluster, clusters } from "./api";

const PERIOD = 1_000;
/** With more lines than this every other time is enough: nobody reads so many figures a second. */
const CROWD = 60;

class Known {
  /** Replaced as a whole by each answer; to watch every field of it would cost more than to draw it. */
  clusters = $state.raw<Cluster[]>([]);
  /** When the last answer came; 0 before. */
  at = $state(0);
  error = $state("");
  now = $state(Date.now());
}
export const known = new Known();

let asking = false;

async function ask(): Promise<void> {
  if (asking || document.hidden) return;
  asking = true;
  try {
    known.clusters = await clusters();
    known.at = Date.now();
    known.error = "";
  } catch (error) {
    known.error = error instanceof Error ? error.message : String(error);
  } finally {
    asking = false;
  }
}

export function start(): () => void {
  void ask();
  let turn = 0;
  const asks = setInterval(() => {
    turn += 1;
    const lines = known.clusters.reduce((sum, cluster) => sum + (cluster.portrait?.edges.length ?? 0), 0);
    if (lines <= CROWD || turn % 2 === 0) void ask();
  }, PERIOD);
  const ticks = setInterval(() => (known.now = Date.now()), 1_000);
  document.addEventListener("visibilitychange", ask);
  return () => {
    clearInterval(asks);
    clearInterval(ticks);
    document.removeEventListener("visibilitychange", ask);
  };
}

/** `#/service/west/emojivoto/web-svc` is `["service", "west", "emojivoto", "web-svc"]`. */
const parts = (): string[] =>
  location.hash
    .replace(/^#\/?/, "")
    .split("/")
    .filter((part) => part !== "")
    .map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });

export const place = $state({ parts: parts() });
addEventListener("hashchange", () => {
  place.parts = parts();
  scrollTo(0, 0);
});

export const to = (...all: string[]): string => `#/${all.map(encodeURIComponent).join("/")}`;

const THEME = "hawser-theme";
type Theme = "light" | "dark" | "";

const stored = (): Theme => {
  try {
    const theme = localStorage.getItem(THEME);
    return theme === "light" || theme === "dark" ? theme : "";
  } catch {
    return "";
  }
};

export const theme = $state({ chosen: stored() });

export function paint(): void {
  if (theme.chosen) document.documentElement.dataset.theme = theme.chosen;
  else delete document.documentElement.dataset.theme;
}

export function turn(): void {
  const dark = theme.chosen ? theme.chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  theme.chosen = dark ? "light" : "dark";
  try {
    localStorage.setItem(THEME, theme.chosen);
  } catch {
    // Forgotten with the page, then.
  }
  paint();
}
