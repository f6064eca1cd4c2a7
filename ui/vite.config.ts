import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// Stable names and one file of each kind: the build is committed, so a change should be a small difference.
export default defineConfig({
  plugins: [svelte({ compilerOptions: { css: "external" } })],
  build: {
    outDir: "../crates/viz/dist",
    emptyOutDir: true,
    modulePreload: false,
    cssCodeSplit: false,
    target: "es2023",
    rollupOptions: {
      output: {
        entryFileNames: "app.js",
        codeSplitting: false,
        assetFileNames: (asset) => (asset.names?.some((name) => name.endsWith(".css")) ? "app.css" : "[name][extname]"),
      },
    },
  },
  // `npm run dev` beside a running `hawser viz dashboard`.
  server: { proxy: { "/api": { target: "http://localhost:50750", changeOrigin: true } } },
});
