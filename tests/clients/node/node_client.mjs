// onnxruntime-node: node node_client.mjs FOLDER [FORM …]
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { BATCHES, oneLine, readStudent, rows } from "./exchange.mjs";

const answers = {};
const errors = {};
for (const { name, model, dtype, shape, bytes } of readStudent(process.argv[2], process.argv.slice(3))) {
  try {
    const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1 });
    answers[name] = {};
    for (const size of BATCHES) {
      const part = new Uint8Array(bytes.subarray(0, (bytes.length / shape[0]) * size));
      const values = dtype === "uint8" ? part : new Float32Array(part.buffer);
      const image = new ort.Tensor(dtype, values, [size, ...shape.slice(1)]);
      const { logits } = await session.run({ image });
      answers[name][size] = rows(logits.data, size);
    }
  } catch (error) {
    delete answers[name];
    errors[name] = oneLine(error);
  }
}
const { version } = JSON.parse(readFileSync(new URL("node_modules/onnxruntime-node/package.json", import.meta.url)));
console.log(JSON.stringify({ version: `${version}, Node ${process.versions.node}`, answers, errors }));
