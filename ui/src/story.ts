// What is going on, in sentences. Pure.
import type { Cluster, Split } from "./api";
import { isCutOff, plain, plural, rate, share, span } from "./words";

export interface Sentence {
  text: string;
  tone: "calm" | "note" | "alarm";
  /** Where to read more. */
  href?: string[];
}

export interface Moment {
  at: number;
  cluster: string;
  text: string;
  why: string;
  isAlarm: boolean;
  href?: string[];
}

/** Where a split's traffic goes, in words. */
export function answers(split: Split): string {
  const total = split.backends.reduce((sum, one) => sum + one.weight, 0);
  if (total === 0) return "nobody";
  const some = split.backends.filter((one) => one.weight > 0);
  const name = (one: Split["backends"][number]) => (one.cluster ? `cluster ${one.cluster}` : "this cluster");
  if (some.length === 1) return name(some[0]!);
  return some.map((one) => `${name(one)} (${share(one.weight / total)})`).join(" and ");
}

export const hasFailedOver = (split: Split): boolean => split.phase !== "" && split.phase !== "Primary";

export function story(clusters: Cluster[], now: number): Sentence[] {
  const sentences: Sentence[] = [];
  for (const cluster of clusters) {
    if (!cluster.is_here && isCutOff(cluster)) {
      const last = cluster.age_seconds == null ? "it has never answered" : `it answered ${span(cluster.age_seconds)} ago`;
      sentences.push({ text: `Cluster ${cluster.name} is cut off: ${last}.`, tone: "alarm", href: ["links"] });
    }
    for (const link of cluster.portrait?.links ?? []) {
      if (link.is_alive === false) {
        sentences.push({ text: `The gateway of ${link.cluster} does not answer ${cluster.name}.`, tone: "alarm", href: ["links"] });
      }
    }
    for (const split of cluster.portrait?.splits ?? []) {
      if (!hasFailedOver(split)) continue;
      const since = split.since ? ` since ${span(now - split.since)}` : "";
      const verb = split.phase === "Returning" ? "is returning; now answered by" : "has failed over: answered by";
      sentences.push({
        text: `${split.service} in ${cluster.name} ${verb} ${answers(split)}${since}. ${split.why}`,
        tone: "note",
        href: ["service", cluster.name, split.namespace, split.service],
      });
    }
  }
  return sentences;
}

/** One line about everything. Requests are those of clients that nobody calls, as they see them. */
export function summary(clusters: Cluster[]): string {
  const portraits = clusters.filter((cluster) => !isCutOff(cluster)).flatMap((cluster) => (cluster.portrait ? [cluster.portrait] : []));
  let [rps, good, pods, open, secured] = [0, 0, 0, 0, 0];
  const reasons = new Set<string>();
  for (const portrait of portraits) {
    const workloads = new Map(portrait.workloads.map((one) => [one.id, one]));
    for (const workload of portrait.workloads) if (!workload.is_system) pods += workload.meshed;
    for (const edge of portrait.edges) {
      const from = workloads.get(edge.from);
      if (edge.rps == null || from?.is_system) continue;
      if (from && from.rps == null) {
        rps += edge.rps;
        good += edge.rps * (edge.success ?? 0);
      }
      // Probes of the kubelet and the like are nobody's traffic.
      if (!from) continue;
      open += 1;
      if (edge.is_secured) secured += 1;
      else reasons.add(plain(edge.no_tls_reason));
    }
  }
  const linked = clusters.length === 1 ? "One cluster" : `${numeral(clusters.length)} linked clusters`;
  const traffic = rps > 0 ? `${rate(rps)} requests a second, ${share(good / rps)} succeed.` : "No requests now.";
  const clear = `${plural(open - secured, "route is", "routes are")} not secured by the mesh: ${[...reasons].join(", ")}.`;
  const security = open === 0 ? "" : secured === open ? " Every one is encrypted, and both sides prove who they are." : ` ${clear}`;
  return `${linked}, ${plural(pods, "pod")} in the mesh. ${traffic}${security}`;
}

const numeral = (count: number): string => ["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"][count] ?? `${count}`;

/** What changed, the newest first. */
export function moments(clusters: Cluster[]): Moment[] {
  const all: Moment[] = [];
  for (const cluster of clusters) {
    for (const split of cluster.portrait?.splits ?? []) {
      const cluster_of = new Map(split.backends.map((one) => [one.service, one.cluster]));
      for (const change of split.history) {
        // Steps on the way back are told where the service is shown.
        if (change.phase === "Returning") continue;
        const total = change.weights.reduce((sum, [, weight]) => sum + weight, 0);
        const shares = change.weights
          .filter(([, weight]) => weight > 0)
          .map(([service, weight]) => {
            const where = cluster_of.get(service) || cluster.name;
            return total === weight ? where : `${where} ${share(weight / total)}`;
          });
        all.push({
          at: change.at,
          cluster: cluster.name,
          text: `${split.service} → ${shares.length ? shares.join(", ") : "nobody"}`,
          why: change.why,
          isAlarm: change.phase === "Fallback" || change.phase === "NobodyReady",
          href: ["service", cluster.name, split.namespace, split.service],
        });
      }
    }
    for (const event of cluster.portrait?.events ?? []) {
      // The split's own history says it better.
      if (event.kind === "TrafficSplit" && event.reason === "Failover") continue;
      if (!event.is_system && !["ScalingReplicaSet", "Killing", "BackOff", "Unhealthy", "Failed"].includes(event.reason)) continue;
      all.push({
        at: event.at,
        cluster: cluster.name,
        text: `${event.kind} ${event.name}: ${event.reason}`,
        why: event.note,
        isAlarm: event.is_warning,
      });
    }
  }
  return all.sort((one, other) => other.at - one.at);
}
