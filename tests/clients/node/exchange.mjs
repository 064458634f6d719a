// What the JavaScript clients share: reading a student's folder, and telling the answers as one JSON object.
import { readFileSync } from "node:fs";
import { join } from "node:path";

export const BATCHES = [1, 2, 7, 32];

export function readStudent(folder, wanted) {
  const inputs = JSON.parse(readFileSync(join(folder, "inputs.json")));
  const forms = JSON.parse(readFileSync(join(folder, "forms.json")));
  const names = wanted.length ? wanted : Object.keys(forms);
  return names.map((name) => {
    const { dtype, shape, file } = inputs[forms[name].input];
    const bytes = readFileSync(join(folder, file));
    return { name, model: join(folder, forms[name].file), dtype, shape, bytes };
  });
}

export function rows(flat, count) {
  const length = flat.length / count;
  return Array.from({ length: count }, (_, row) => Array.from(flat.slice(row * length, (row + 1) * length)));
}

export function oneLine(error) {
  return String(error?.message ?? error).replace(/\s+/g, " ").slice(0, 300);
}
