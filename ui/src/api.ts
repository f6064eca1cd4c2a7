// What the collector answers. The fields are those of `crates/viz/src/api.rs`.

export interface Golden {
  rps: number | null;
  success: number | null;
  p50_ms: number | null;
  p95_ms: number | null;
  p99_ms: number | null;
}

export interface Workload extends Golden {
  id: string;
  kind: string;
  namespace: string;
  name: string;
  account: string;
  pods: number;
  meshed: number;
  is_gateway: boolean;
  is_system: boolean;
  expires_at: number | null;
}

export interface Service extends Golden {
  namespace: string;
  name: string;
  is_exported: boolean;
  is_system: boolean;
  mirrors: { cluster: string; service: string } | null;
}

export interface Traffic extends Golden {
  from: string;
  from_account: string;
  to: string;
  to_account: string;
  cluster: string;
  service: string;
  connections: number;
  bytes_per_second: number;
  is_secured: boolean;
  no_tls_reason: string;
}

export interface Change {
  at: number;
  phase: string;
  why: string;
  weights: [string, number][];
}

export interface Split {
  namespace: string;
  name: string;
  service: string;
  backends: { service: string; weight: number; cluster: string }[];
  phase: string;
  why: string;
  since: number | null;
  history: Change[];
}

export interface Condition {
  kind: string;
  status: string;
  reason: string;
  message: string;
  since: string;
}

export interface Link {
  name: string;
  cluster: string;
  gateway: string;
  is_alive: boolean | null;
  probes: Golden;
  requests: Golden;
  bytes_per_second: number;
  conditions: Condition[];
  mirrored: { namespace: string; service: string; local: string; conditions: Condition[] }[];
}

export interface Certificate {
  kind: string;
  name: string;
  expires_at: number;
  count: number;
}

export interface Event {
  at: number;
  is_warning: boolean;
  is_system: boolean;
  kind: string;
  namespace: string;
  name: string;
  reason: string;
  note: string;
  by: string;
  count: number;
}

export interface Portrait {
  cluster: string;
  at: number;
  window_seconds: number;
  status: { sources: number; read: number; unread: Record<string, string>; window_bytes: number; seconds: number };
  denied: { resource: string; namespace: string; why: string }[];
  workloads: Workload[];
  services: Service[];
  edges: Traffic[];
  splits: Split[];
  links: Link[];
  certificates: Certificate[];
  events: Event[];
}

export interface Cluster {
  name: string;
  is_here: boolean;
  age_seconds: number | null;
  error: string | null;
  portrait: Portrait | null;
}

export interface Series {
  end: number;
  step_seconds: number;
  lines: { service: string; cluster: string; points: Golden[] }[];
}

export interface PodStat extends Golden {
  name: string;
  is_meshed: boolean;
  version: string;
  expires_at: number | null;
}

/** A workload over time, and its pods. */
export interface Closeup {
  end: number;
  step_seconds: number;
  inbound: Golden[];
  outbound: Golden[];
  pods: PodStat[];
}

export interface Leg {
  from: string;
  /** Empty for the application. */
  to: string;
  cluster: string;
  over: "network" | "wan" | "application" | "unknown";
  mean_ms: number;
  rps: number;
}

export interface Path {
  from: string;
  service: string;
  cluster: string;
  rps: number;
  refused_rps: number;
  mean_ms: number;
  legs: Leg[];
  unknown: string;
}

export interface Finding {
  about: string;
  cluster: string;
  subject: string;
  verdict: "ok" | "warning" | "fails";
  seen: string;
  why?: string;
  try?: string;
  standing_by: boolean;
}

/** As `hawser explain -o json` gives it. */
export interface Explanation {
  from: string;
  to: string;
  verdict: Finding["verdict"];
  succeeds: boolean;
  decision: { share: number; way: string[]; end: string; succeeds: boolean }[];
  findings: Finding[];
}

/** A cluster that does not say what it is called. */
export const UNNAMED = "this cluster";

async function read<T>(answer: Response): Promise<T> {
  const body = await answer.json();
  if (!answer.ok) throw new Error(typeof body?.error === "string" ? body.error : answer.statusText);
  return body as T;
}

async function get<T>(path: string, patience = 10_000): Promise<T> {
  return read<T>(await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(patience) }));
}

let last: { tag: string; clusters: Cluster[] } | undefined;

/** The same array as before as long as nothing is new. */
export async function clusters(): Promise<Cluster[]> {
  // Kept by us, so that it is we who are told that nothing is new, and no cache writes every answer to a disk.
  const headers: HeadersInit = last ? { "if-none-match": last.tag } : {};
  const answer = await fetch("/api/clusters", { headers, cache: "no-store", signal: AbortSignal.timeout(10_000) });
  if (last && answer.status === 304) return last.clusters;
  const all = (await read<Cluster[]>(answer)).map((cluster) => ({ ...cluster, name: cluster.name || UNNAMED }));
  const tag = answer.headers.get("etag");
  last = tag ? { tag, clusters: all } : undefined;
  return all;
}

export function series(cluster: Cluster, namespace: string, name: string, seconds: number): Promise<Series> {
  const query = new URLSearchParams({ namespace, name, window: `${seconds}s` });
  if (!cluster.is_here) query.set("cluster", cluster.name);
  return get<Series>(`/api/series?${query}`);
}

export function closeup(cluster: Cluster, kind: string, namespace: string, name: string, seconds: number): Promise<Closeup> {
  const query = new URLSearchParams({ kind, namespace, name, window: `${seconds}s` });
  if (!cluster.is_here) query.set("cluster", cluster.name);
  return get<Closeup>(`/api/workload?${query}`);
}

/** Of this cluster only: what leads to it from another is that cluster's to tell. */
export function paths(namespace: string, name: string, seconds: number): Promise<Path[]> {
  return get<Path[]>(`/api/paths?${new URLSearchParams({ to_namespace: namespace, to_name: name, window: `${seconds}s` })}`);
}

/** Answered by who opened the page's port, with their rights; `from` is a workload's id, or empty for anybody. */
export function explain(cluster: Pick<Cluster, "name" | "is_here">, namespace: string, name: string, from: string): Promise<Explanation> {
  const query = new URLSearchParams({ namespace, name });
  if (!cluster.is_here) query.set("cluster", cluster.name);
  const [kind, from_namespace, from_name] = from.split("/");
  if (kind && from_namespace && from_name) {
    for (const [key, value] of Object.entries({ from_kind: kind, from_namespace, from_name })) query.set(key, value);
  }
  return get<Explanation>(`/api/explain?${query}`, 30_000);
}
