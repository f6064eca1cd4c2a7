// Turns what clusters say into boxes and lines, and lays them out: one box to a cluster, traffic from left to right, or
// from top to bottom where there is no width. Pure.
import dagre from "@dagrejs/dagre";
import { type Cluster, type Golden, type Split, type Traffic, type Workload, UNNAMED } from "./api";
import { isCutOff } from "./words";

export interface Node {
  id: string;
  kind: "workload" | "gateway" | "split" | "outside";
  cluster: string;
  title: string;
  /** Under the title where there is nothing better to say. */
  note: string;
  golden: Golden | null;
  /** Nothing of it runs. */
  isGone: boolean;
  workload: Workload | null;
  split: Split | null;
  x: number;
  y: number;
  w: number;
  h: number;
}

export interface Edge {
  id: string;
  from: Node;
  to: Node;
  golden: Golden;
  services: string[];
  isSecured: boolean;
  why: string;
  /** From one cluster to another. */
  isCrossing: boolean;
  /** Of its split's traffic, 0 to 1. */
  share: number | null;
  connections: number;
  bytes: number;
  path: string;
  label: { x: number; y: number; anchor: "start" | "middle" | "end" };
}

export interface Box {
  cluster: Cluster;
  isCutOff: boolean;
  x: number;
  y: number;
  w: number;
  h: number;
}

export interface Picture {
  nodes: Node[];
  edges: Edge[];
  boxes: Box[];
  w: number;
  h: number;
}

export interface Options {
  /** Top to bottom. */
  isNarrow: boolean;
  /** The mesh's own workloads too. */
  withSystem: boolean;
  /** Empty for all. */
  namespace: string;
  /** What there is, in pixels. */
  width: number;
}

const NODE = { w: 148, h: 46 };
const SPLIT = { w: 132, h: 40 };
const PAD = { side: 26, top: 42, bottom: 20 };
const GAP = 26;

const NOTHING: Golden = { rps: null, success: null, p50_ms: null, p95_ms: null, p99_ms: null };

/** Two counts of requests as one. Quantiles don't add up: the worse one is nearer to the truth. */
export function add(one: Golden, other: Golden): Golden {
  const worse = (a: number | null, b: number | null) => (a == null ? b : b == null ? a : Math.max(a, b));
  const rps = (one.rps ?? 0) + (other.rps ?? 0);
  const good = (one.rps ?? 0) * (one.success ?? 0) + (other.rps ?? 0) * (other.success ?? 0);
  return {
    rps: one.rps == null && other.rps == null ? null : rps,
    success: rps > 0 ? good / rps : null,
    p50_ms: worse(one.p50_ms, other.p50_ms),
    p95_ms: worse(one.p95_ms, other.p95_ms),
    p99_ms: worse(one.p99_ms, other.p99_ms),
  };
}

/** Everything without places. */
function collect(clusters: Cluster[], options: Options): { nodes: Map<string, Node>; edges: Map<string, Edge> } {
  const nodes = new Map<string, Node>();
  const edges = new Map<string, Edge>();
  const byName = new Map(clusters.map((cluster) => [cluster.name, cluster]));
  const put = (node: Omit<Node, "x" | "y" | "w" | "h">, size = NODE): Node => {
    const known = nodes.get(node.id);
    if (known) return known;
    const placed = { ...node, x: 0, y: 0, ...size };
    nodes.set(node.id, placed);
    return placed;
  };
  const ofWorkload = (cluster: string, workload: Workload): Node =>
    put({
      id: `${cluster}|${workload.id}`,
      kind: workload.is_gateway ? "gateway" : "workload",
      cluster,
      title: workload.is_gateway ? "gateway" : workload.is_system ? workload.name.replace(/^linkerd-/, "") : workload.name,
      note: workload.pods === 0 ? "no pods" : workload.meshed === 0 ? "not in the mesh" : "",
      golden: workload,
      isGone: workload.pods === 0,
      workload,
      split: null,
    });
  const outside = (cluster: string, id: string, title: string): Node =>
    put({ id: `${cluster}|${id}`, kind: "outside", cluster, title, note: "", golden: null, isGone: false, workload: null, split: null });
  const join = (from: Node, to: Node, traffic: Traffic | null, share: number | null): void => {
    if (from === to) return;
    const id = `${from.id}>${to.id}`;
    const edge = edges.get(id) ?? {
      id,
      from,
      to,
      golden: NOTHING,
      services: [],
      isSecured: true,
      why: "",
      isCrossing: from.cluster !== to.cluster,
      share,
      connections: 0,
      bytes: 0,
      path: "",
      label: { x: 0, y: 0, anchor: "middle" },
    };
    if (traffic) {
      edge.golden = add(edge.golden, traffic);
      edge.connections += traffic.connections;
      edge.bytes += traffic.bytes_per_second;
      if (traffic.service && !edge.services.includes(traffic.service)) edge.services.push(traffic.service);
      // An idle past in the clear is no news.
      if (!traffic.is_secured && (traffic.rps != null || traffic.connections > 0)) {
        edge.isSecured = false;
        edge.why = traffic.no_tls_reason;
      }
    }
    edges.set(id, edge);
  };

  for (const cluster of clusters) {
    const portrait = cluster.portrait;
    if (!portrait) continue;
    const workloads = new Map(portrait.workloads.map((workload) => [workload.id, workload]));
    const isShown = (workload: Workload | undefined): workload is Workload =>
      workload != null &&
      (options.withSystem || !workload.is_system || workload.is_gateway) &&
      (!options.namespace || workload.is_gateway || workload.namespace === options.namespace);
    for (const workload of portrait.workloads) {
      if (isShown(workload) && (workload.meshed > 0 || workload.pods === 0) && (options.withSystem || !workload.is_gateway)) ofWorkload(cluster.name, workload);
    }
    const splits = new Map<string, Split>();
    for (const split of portrait.splits) {
      for (const backend of split.backends) splits.set(`${split.namespace}/${backend.service}`, split);
    }
    for (const traffic of portrait.edges) {
      const sender = workloads.get(traffic.from);
      let from: Node;
      if (traffic.from) {
        if (!isShown(sender)) continue;
        from = ofWorkload(cluster.name, sender);
      } else if (traffic.rps == null && traffic.connections === 0) {
        continue;
      } else if (traffic.from_account) {
        // Whoever sends from a cluster that we see is drawn there.
        const sends = clusters.some((other) => other !== cluster && other.portrait?.edges.some((edge) => edge.cluster === cluster.name));
        if (sends || !isShown(workloads.get(traffic.to))) continue;
        from = outside(cluster.name, "linked", "other clusters");
      } else {
        const receiver = workloads.get(traffic.to);
        // Probes of the kubelet and the like are no traffic of anybody's.
        if (!isShown(receiver) || receiver.is_gateway || traffic.rps == null) continue;
        from = outside(cluster.name, "unmeshed", "outside the mesh");
      }
      let to: Node | null = null;
      if (traffic.cluster) {
        const target = byName.get(traffic.cluster)?.portrait?.workloads.find((workload) => workload.account === traffic.to_account);
        to = target
          ? ofWorkload(traffic.cluster, target)
          : put({
              id: `${traffic.cluster}|gateway`,
              kind: "gateway",
              cluster: traffic.cluster,
              title: "gateway",
              note: "its collector isn't seen",
              golden: null,
              isGone: false,
              workload: null,
              split: null,
            });
      } else {
        const target = workloads.get(traffic.to);
        if (target && !isShown(target)) continue;
        if (target) to = ofWorkload(cluster.name, target);
        else if (traffic.service && (traffic.rps != null || traffic.connections > 0)) to = outside(cluster.name, `service/${traffic.service}`, traffic.service.split("/")[1] ?? "");
      }
      if (!to) continue;
      const split = traffic.service ? splits.get(traffic.service) : undefined;
      if (split && from.kind !== "gateway") {
        const backend = split.backends.find((one) => `${split.namespace}/${one.service}` === traffic.service);
        const total = split.backends.reduce((sum, one) => sum + one.weight, 0);
        const middle = put(
          {
            id: `${cluster.name}|split/${split.namespace}/${split.name}`,
            kind: "split",
            cluster: cluster.name,
            title: split.service,
            note: "",
            golden: null,
            isGone: false,
            workload: null,
            split,
          },
          SPLIT,
        );
        middle.golden = add(middle.golden ?? NOTHING, traffic);
        join(from, middle, traffic, null);
        join(middle, to, traffic, total > 0 && backend ? backend.weight / total : null);
      } else if (traffic.rps != null || traffic.connections > 0 || !traffic.cluster) {
        join(from, to, traffic, null);
      }
    }
  }
  return { nodes, edges };
}

const middle = (node: Node) => ({ x: node.x + node.w / 2, y: node.y + node.h / 2 });

/** A line from one node's side to another's, and where its words go. */
function draw(edge: Edge, isNarrow: boolean, right: number): void {
  const { from, to } = edge;
  const [a, b] = [middle(from), middle(to)];
  const round = (value: number) => Math.round(value * 10) / 10;
  let points: [number, number][];
  if (edge.isCrossing && isNarrow) {
    // Around everything else.
    const out = right + 30;
    points = [[from.x + from.w, a.y], [out, a.y], [out, b.y], [to.x + to.w, b.y]];
  } else if (edge.isCrossing) {
    const isDown = b.y > a.y;
    const start = isDown ? from.y + from.h : from.y;
    // Down out of the one box, and into the other from the left.
    points = [[a.x, start], [a.x, start + (b.y - start) * 0.75], [Math.min(a.x, to.x - 30), b.y], [to.x, b.y]];
  } else if (isNarrow) {
    const isDown = b.y >= a.y;
    const [start, end] = isDown ? [from.y + from.h, to.y] : [from.y, to.y + to.h];
    points = [[a.x, start], [a.x, (start + end) / 2], [b.x, (start + end) / 2], [b.x, end]];
  } else {
    const isRight = b.x >= a.x;
    const [start, end] = isRight ? [from.x + from.w, to.x] : [from.x, to.x + to.w];
    points = [[start, a.y], [(start + end) / 2, a.y], [(start + end) / 2, b.y], [end, b.y]];
  }
  const [p, q, r, s] = points.map(([x, y]) => `${round(x)} ${round(y)}`);
  edge.path = `M ${p} C ${q}, ${r}, ${s}`;
  // The middle of a cubic.
  const at = (axis: 0 | 1) => points.reduce((sum, point, index) => sum + point[axis] * [0.125, 0.375, 0.375, 0.125][index]!, 0);
  // Near its end, where lines that began together have parted.
  if (edge.isCrossing && isNarrow) edge.label = { x: at(0) - 8, y: to.y - PAD.top - GAP / 2 + 4, anchor: "end" };
  else if (edge.isCrossing) edge.label = { x: at(0) + 10, y: at(1) - 26, anchor: "start" };
  else if (isNarrow) edge.label = { x: b.x, y: to.y - 11, anchor: "middle" };
  else if (b.x > a.x) edge.label = { x: to.x - 13, y: b.y - 7, anchor: "end" };
  else edge.label = { x: at(0), y: at(1) - 6, anchor: "middle" };
}

/** How far ranks are apart at least and at most, for the words on the lines. */
const APART = { least: 118, most: 160 };

/** Laying out costs more than all else, and who speaks to whom seldom changes: as long as it doesn't, all stays in its place. */
let last: { key: string; picture: Picture } | null = null;

export function picture(clusters: Cluster[], options: Options): Picture {
  const all = collect(clusters, options);
  const sizes = [...all.nodes.values()].map((node) => `${node.id} ${node.w} ${node.h}`);
  const key = JSON.stringify([options, clusters.map((cluster) => cluster.name), sizes.sort(), [...all.edges.keys()].sort()]);
  const now = last?.key === key ? moveIn(clusters, all, last.picture) : layOut(clusters, all, options);
  last = { key, picture: now };
  return now;
}

/** The same boxes and lines as before, with what is known of them now. */
function moveIn(clusters: Cluster[], { nodes, edges }: ReturnType<typeof collect>, before: Picture): Picture {
  for (const { id, x, y } of before.nodes) Object.assign(nodes.get(id) ?? {}, { x, y });
  for (const { id, path, label } of before.edges) Object.assign(edges.get(id) ?? {}, { path, label });
  const boxes = before.boxes.map((box) => {
    const cluster = clusters.find((one) => one.name === box.cluster.name) ?? box.cluster;
    return { ...box, cluster, isCutOff: isCutOff(cluster) };
  });
  return { ...before, nodes: [...nodes.values()], edges: [...edges.values()], boxes };
}

function layOut(clusters: Cluster[], all: ReturnType<typeof collect>, options: Options): Picture {
  const first = place(clusters, all, options, APART.least);
  const ranks = new Set(first.nodes.map((node) => Math.round(node.x))).size;
  const room = (options.width - first.w) / Math.max(1, ranks - 1);
  if (options.isNarrow || room < 4 || first.nodes.length > 150) return first;
  // The width is there, so it is used.
  return place(clusters, all, options, Math.min(APART.most, APART.least + room));
}

function place(clusters: Cluster[], all: ReturnType<typeof collect>, options: Options, apart: number): Picture {
  const { nodes, edges } = all;
  const { isNarrow } = options;
  const names = [...new Set([...clusters.map((cluster) => cluster.name), ...[...nodes.values()].map((node) => node.cluster)])];
  const boxes: Box[] = [];
  let [along, w] = [0, 0];
  for (const name of names) {
    const inside = [...nodes.values()].filter((node) => node.cluster === name);
    const layout = new dagre.graphlib.Graph();
    layout.setGraph({ rankdir: isNarrow ? "TB" : "LR", nodesep: 14, ranksep: isNarrow ? 44 : apart, ranker: "tight-tree" });
    layout.setDefaultEdgeLabel(() => ({}));
    for (const node of inside) layout.setNode(node.id, { width: node.w, height: node.h });
    for (const edge of edges.values()) {
      if (edge.from.cluster === name && edge.to.cluster === name) layout.setEdge(edge.from.id, edge.to.id);
    }
    if (inside.length > 0) dagre.layout(layout);
    // What comes from a cluster above arrives to the right of where it left, if it can.
    let shift = 0;
    if (!isNarrow) {
      for (const edge of edges.values()) {
        const isPlaced = boxes.some((box) => box.cluster.name === edge.from.cluster);
        if (edge.isCrossing && edge.to.cluster === name && isPlaced) {
          const x = layout.node(edge.to.id).x - edge.to.w / 2 + PAD.side;
          shift = Math.max(shift, edge.from.x + edge.from.w / 2 + 70 - x);
        }
      }
    }
    let [right, bottom] = [0, 0];
    for (const node of inside) {
      const { x, y } = layout.node(node.id);
      node.x = x - node.w / 2 + PAD.side + shift;
      node.y = y - node.h / 2 + PAD.top + along;
      right = Math.max(right, node.x + node.w + PAD.side);
      bottom = Math.max(bottom, node.y + node.h + PAD.bottom);
    }
    const h = Math.max(bottom - along, 92);
    const cluster = clusters.find((one) => one.name === name) ?? {
      name: name || UNNAMED,
      is_here: false,
      age_seconds: null,
      error: "its collector isn't linked",
      portrait: null,
    };
    boxes.push({ cluster, isCutOff: isCutOff(cluster), x: 0, y: along, w: 0, h });
    w = Math.max(w, right);
    along += h + GAP;
  }
  w = Math.max(w, isNarrow ? 320 : Math.min(options.width, 1300));
  if (isNarrow && [...edges.values()].some((edge) => edge.isCrossing)) w += 14;
  for (const box of boxes) box.w = w;
  const edgeOf = Math.max(0, ...[...nodes.values()].map((node) => node.x + node.w));
  for (const edge of edges.values()) draw(edge, isNarrow, edgeOf);
  return { nodes: [...nodes.values()], edges: [...edges.values()], boxes, w, h: Math.max(0, along - GAP) };
}
