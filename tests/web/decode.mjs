// Decodes files by name from stdin, one a line, with the reader in the folder argv[2]. Writes a line of
// JSON for each: size and sha256 of the pixels, or the kind and message of the error.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, options] = [process.argv[2], JSON.parse(process.argv[3])];
const { load } = await import(pathToFileURL(`${folder}/dynenc.js`));
function report(make) {
  try {
    console.log(JSON.stringify(make()));
  } catch (error) {
    console.log(JSON.stringify({ error: error.name, message: error.message }));
  }
}
const program = readFileSync(`${folder}/dynenc.wasm`);
const loaded = load(program, readFileSync(`${folder}/dynenc.safetensors`));
const [{ value: reader, reason }] = await Promise.allSettled([loaded]);
for (const name of readFileSync(0, "utf8").trim().split("\n"))
  report(() => {
    if (reason) throw reason;
    const { width, height, data, chunks } = reader.decode(readFileSync(name), options);
    const sha256 = createHash("sha256").update(data).digest("hex");
    return { width, height, sha256, chunks: [...chunks.keys()] };
  });
