// Numbers and states as people read them.
import type { Cluster, Golden } from "./api";

export const rate = (rps: number | null | undefined): string =>
  rps == null ? "–" : rps >= 100 ? `${Math.round(rps)}` : rps >= 9.95 ? rps.toFixed(0) : rps.toFixed(1);

export const share = (part: number | null | undefined): string => {
  if (part == null) return "–";
  const percent = part * 100;
  // 99.97 % isn't 100 %.
  const places = percent > 99 && percent < 100 ? 1 : 0;
  return `${(places ? Math.floor(percent * 10) / 10 : percent).toFixed(places)} %`;
};

export const ms = (value: number | null | undefined): string => {
  if (value == null) return "–";
  if (value >= 10_000) return `${(value / 1000).toFixed(0)} s`;
  if (value >= 1_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 10 ? value.toFixed(0) : value.toFixed(1)} ms`;
};

export const bytes = (value: number): string => {
  const units = ["B", "kB", "MB", "GB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${value >= 10 || at === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[at]}/s`;
};

export const span = (seconds: number): string => {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 2 * 86_400) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86_400)} days`;
};

export const clock = (at: number): string =>
  new Date(at * 1000).toLocaleTimeString("en-GB");

export type Health = "good" | "fair" | "bad" | "none";

/** Judged by success alone: how slow is too slow only users know. */
export const health = (golden: Golden | null | undefined): Health => {
  if (golden?.success == null) return "none";
  if (golden.success >= 0.99) return "good";
  return golden.success >= 0.9 ? "fair" : "bad";
};

export const SIGN: Record<Health, string> = { good: "●", fair: "▲", bad: "✕", none: "○" };
export const SAID: Record<Health, string> = {
  good: "answers well",
  fair: "some requests fail",
  bad: "many requests fail",
  none: "no requests",
};

/** Nobody has heard from it for a while. */
export const isCutOff = (cluster: Cluster): boolean => cluster.error != null || cluster.portrait == null;

export const plural = (count: number, one: string, many = `${one}s`): string => `${count} ${count === 1 ? one : many}`;

const REASONS: Record<string, string> = {
  no_tls_from_remote: "the client has no proxy",
  not_provided_by_service_discovery: "the server has no proxy",
  no_identity: "a side has no identity",
  loopback: "it stays in the pod",
  disabled: "the proxy has no identity",
  opaque: "TLS of the application",
  plain: "not encrypted by the mesh",
};

export const plain = (reason: string): string => REASONS[reason] ?? reason.replaceAll("_", " ");
