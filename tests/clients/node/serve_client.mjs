// A running `compress serve`, reached with fetch alone: node serve_client.mjs URL FOLDER
// Asks for the golden images by the Open Inference Protocol, as JSON and as raw tensors, in several batches.
import { BATCHES, oneLine, readStudent, rows } from "./exchange.mjs";

const [url, folder] = process.argv.slice(2);
const [{ shape, bytes }] = readStudent(folder, ["float32"]);
const { name } = await (await fetch(`${url}/v2`)).json();
const model = process.argv[4] ?? name;
const answers = { json: {}, binary: {} };
const errors = {};

async function infer(body, headers) {
  const response = await fetch(`${url}/v2/models/${model}/infer`, { method: "POST", body, headers });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  return response;
}

for (const size of BATCHES) {
  const part = bytes.subarray(0, (bytes.length / shape[0]) * size);
  const image = { name: "image", shape: [size, ...shape.slice(1)], datatype: "UINT8" };
  try {
    const request = JSON.stringify({ inputs: [{ ...image, data: Array.from(part) }] });
    const { outputs } = await (await infer(request, { "content-type": "application/json" })).json();
    answers.json[size] = rows(outputs[0].data, size);
  } catch (error) {
    errors.json = oneLine(error);
  }
  try {
    const request = { inputs: [{ ...image, parameters: { binary_data_size: part.length } }] };
    const header = new TextEncoder().encode(
      JSON.stringify({ ...request, outputs: [{ name: "logits", parameters: { binary_data: true } }] }),
    );
    const response = await infer(Buffer.concat([header, part]), {
      "content-type": "application/octet-stream",
      "inference-header-content-length": String(header.length),
    });
    const length = Number(response.headers.get("inference-header-content-length"));
    const raw = (await response.arrayBuffer()).slice(length);
    answers.binary[size] = rows(new Float32Array(raw), size);
  } catch (error) {
    errors.binary = oneLine(error);
  }
}
console.log(JSON.stringify({ version: `Node ${process.versions.node}`, answers, errors }));
