// onnxruntime-web (WebAssembly) in headless Chromium: node web_client.mjs FOLDER CHROMIUM [FORM …]
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { BATCHES, oneLine, readStudent, rows } from "./exchange.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const dist = join(here, "node_modules", "onnxruntime-web", "dist");
const forms = readStudent(process.argv[2], process.argv.slice(4));
const files = new Map(forms.flatMap(({ name, model, bytes }) => [[`/${name}.onnx`, readFileSync(model)], [`/${name}.bin`, bytes]]));
const types = { html: "text/html", mjs: "text/javascript", wasm: "application/wasm" };

const server = createServer((request, response) => {
  const path = new URL(request.url, "http://localhost").pathname;
  const type = types[path.split(".").pop()] ?? "application/octet-stream";
  try {
    const body = path === "/" ? "<!doctype html><title>client</title>" : files.get(path) ?? readFileSync(join(dist, path));
    response.writeHead(200, { "content-type": path === "/" ? "text/html" : type }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

// Chromium refuses to run as root inside its own sandbox; this page comes from this program.
const browser = await chromium.launch({ executablePath: process.argv[3], args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${server.address().port}/`);
const answers = {};
const errors = {};
for (const { name, dtype, shape } of forms) {
  try {
    const given = await page.evaluate(ask, { name, dtype, shape, batches: BATCHES });
    answers[name] = Object.fromEntries(given.map(([size, flat]) => [size, rows(flat, size)]));
  } catch (error) {
    errors[name] = oneLine(error);
  }
}
const { version } = JSON.parse(readFileSync(join(dist, "..", "package.json")));
console.log(JSON.stringify({ version: `${version}, Chromium ${browser.version()}`, answers, errors }));
await browser.close();
server.close();

// Runs in the page.
async function ask({ name, dtype, shape, batches }) {
  const ort = await import("/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = "/";
  const model = new Uint8Array(await (await fetch(`/${name}.onnx`)).arrayBuffer());
  const bytes = await (await fetch(`/${name}.bin`)).arrayBuffer();
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const given = [];
  for (const size of batches) {
    const part = bytes.slice(0, (bytes.byteLength / shape[0]) * size);
    const values = dtype === "uint8" ? new Uint8Array(part) : new Float32Array(part);
    const { logits } = await session.run({ image: new ort.Tensor(dtype, values, [size, ...shape.slice(1)]) });
    given.push([size, Array.from(logits.data)]);
  }
  return given;
}
