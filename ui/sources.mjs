// Writes what the page was built from beside it; a test of crates/viz computes the same and fails when they differ.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

function* files(dir) {
  for (const entry of readdirSync(new URL(dir, import.meta.url), { withFileTypes: true })) {
    if (entry.name === "node_modules") continue;
    if (entry.isDirectory()) yield* files(`${dir}${entry.name}/`);
    else yield `${dir}${entry.name}`;
  }
}

const hash = createHash("sha256");
const byBytes = (one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other));
for (const path of [...files("./")].map((path) => path.slice(2)).sort(byBytes)) {
  const text = readFileSync(new URL(path, import.meta.url));
  hash.update(`${path}\n${text.length}\n`).update(text);
}
writeFileSync(new URL("../crates/viz/dist/.sources", import.meta.url), `${hash.digest("hex")}\n`);
