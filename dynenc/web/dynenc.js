/**
 * Reads .lat files in browsers, Node and other JavaScript engines. docs/web.md tells how.
 *
 * The container is read here; the payload and the pixels by dynenc.wasm, with the tables of
 * dynenc.safetensors. docs/format.md specifies what a reader checks.
 */

const MAGIC = [0x89, 0x4c, 0x41, 0x54];
const VERSION = 1;
const [HAS_CHUNKS, HAS_TRELLIS] = [1, 2];
const FIXED = 14; // bytes before the payload
const MAX_CHUNKS = 1024;
const MAX_PIXELS = 178_956_970;
const KNOWN = [
  "grey", "alph", "exif", "xmpp", "iccp", "iptc", "cmnt", "text", "resl", "cach", "Detl",
];
const FAULTS = new Map([ // what a negative result of the program means: dynenc.h and reader.c
  [-3, "the payload is damaged, or does not end with the last symbol"],
  [-4, "the payload is damaged: an escape codes a residual that the table contains"],
  [-100, "there is not enough memory for an image of this size"],
]);

/** A file that is no .lat file, is damaged, or needs what this reader does not have. */
export class LatError extends Error {
  name = "LatError";
}

/**
 * Make a reader.
 *
 * @param {WebAssembly.Module | BufferSource} program dynenc.wasm, compiled or as bytes
 * @param {BufferSource} tables the bytes of dynenc.safetensors
 * @returns {Promise<Reader>}
 * @throws {LatError} if either is another file; WebAssembly's errors if the program cannot be
 *   compiled
 */
export async function load(program, tables) {
  const module =
    program instanceof WebAssembly.Module ? program : await WebAssembly.compile(program);
  const isOwn =
    WebAssembly.Module.imports(module).length === 0 &&
    WebAssembly.Module.exports(module).some(({ name }) => name === "decoder");
  if (!isOwn) fail("the program is not that of dynenc.wasm");
  return new Reader(await WebAssembly.instantiate(module), bytesOf(tables));
}

/**
 * Reads one file after the other. Its memory is as large as the largest image needed, and is given
 * up with the reader.
 */
class Reader {
  #program;
  #coders = new Map(); // by number and lattice: address, and the fewest bits that a symbol takes
  #decoder;
  #models; // numbers of the models whose latents the decoder decodes

  constructor(instance, tables) {
    this.#program = instance.exports;
    const { models, tensors } = readTables(tables);
    this.#models = models;
    for (const [name, tensor] of tensors)
      if (name.startsWith("coder.")) {
        const at = this.#put(tensor);
        const address = checked(this.#program.coder(at, tensor.length));
        this.#coders.set(name, { address, fewestBits: fewestBits(tensor) });
      }
    const [numbers, weights] = ["numbers", "weights"].map((n) => tensors.get(`decoder.${n}`));
    const at = this.#put(numbers);
    this.#decoder = checked(
      this.#program.decoder(at, numbers.length, this.#put(weights), weights.length),
    );
  }

  /**
   * Decode a .lat file.
   *
   * @param {BufferSource} file its bytes
   * @param {{maxPixels?: number, channels?: 3 | 4}} options maxPixels: refuse images of more; with
   *   4 channels each pixel has an opacity of 255 after red, green and blue, as ImageData wants it
   * @returns {{width: number, height: number, data: Uint8ClampedArray, chunks: Map<string,
   *   Uint8Array>}} the colours, row by row, and the chunks of the file, which are not applied
   * @throws {LatError} whatever the bytes; RangeError if the engine has no memory for the pixels,
   *   TypeError if the channels are others
   */
  decode(file, { maxPixels = MAX_PIXELS, channels = 3 } = {}) {
    if (channels !== 3 && channels !== 4) throw new TypeError(`channels is ${channels}, not 3 or 4`);
    const { header, payload, chunks } = container(bytesOf(file), maxPixels);
    if (!this.#models.includes(header.model))
      fail(`the latents are of model ${header.model}, which this reader has no decoder for`);
    if (chunks.has("Detl")) fail("the file has a detail layer, which this reader cannot decode");
    const lattice = header.flags & HAS_TRELLIS ? 1 : 0;
    const coder = this.#coders.get(`coder.${header.coder}.${["plain", "trellis"][lattice]}`);
    if (!coder) fail(`the file needs entropy coder ${header.coder}, unknown here`);
    const { width, height, step } = header;
    const symbols = 4 * Math.ceil(width / 8) * Math.ceil(height / 8);
    const fewest = (coder.fewestBits * symbols) / 8 - 4; // so a few bytes cannot claim a lot
    if (payload.length % 4 || payload.length <= fewest || payload.length > 6 * symbols + 8)
      fail(`a payload of ${payload.length} bytes cannot be that of ${width}x${height} pixels`);
    const start = this.#program.mark();
    try {
      const at = this.#put(payload);
      const latents = checked(
        this.#program.latents(coder.address, lattice, width, height, step, at, payload.length),
      );
      const pixels = checked(
        this.#program.pixels(this.#decoder, latents, width, height, step),
      );
      const rgb = new Uint8ClampedArray(this.#program.memory.buffer, pixels, 3 * width * height);
      return { width, height, data: channels === 4 ? opaque(rgb) : rgb.slice(), chunks };
    } finally {
      this.#program.release(start);
    }
  }

  /** Copy an array into the program's memory; returns its address. */
  #put(array) {
    const at = checked(this.#program.take(array.byteLength));
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    new Uint8Array(this.#program.memory.buffer).set(bytes, at);
    return at;
  }
}

function fail(message) {
  throw new LatError(message);
}

function checked(result) {
  if (result < 0) fail(FAULTS.get(result) ?? `the reader's program fails (${result})`);
  return result;
}

function bytesOf(source) {
  if (ArrayBuffer.isView(source))
    return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  return new Uint8Array(source);
}

/** Split a file into header, payload and chunks; what chunks hold is not looked into. */
function container(file, maxPixels) {
  if (MAGIC.some((byte, i) => file[i] !== byte)) fail("this is not a .lat file");
  const end = file.length - 4;
  if (end < FIXED) fail(`the file is cut short: ${file.length} bytes`);
  if (file[4] !== VERSION) fail(`the file has format version ${file[4]}, unknown here`);
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (crc32(file.subarray(0, end)) !== view.getUint32(end, true))
    fail("the checksum does not match: the file is damaged or cut short");
  const [width, height, step] = [5, 7, 9].map((at) => view.getUint16(at, true));
  const [model, coder, flags] = file.subarray(11, FIXED);
  if (!(width && height && step)) fail("the header has a zero width, height or step");
  if (flags & ~(HAS_CHUNKS | HAS_TRELLIS)) fail(`the header holds unknown flags ${flags}`);
  if (!(width * height <= maxPixels))
    fail(`the file declares ${width}x${height} pixels, the limit is ${maxPixels}`);
  const header = { width, height, step, model, coder, flags };
  if (!(flags & HAS_CHUNKS))
    return { header, payload: file.subarray(FIXED, end), chunks: new Map() };
  if (end < FIXED + 4) fail("the payload's length is missing");
  const start = FIXED + 4;
  const payloadEnd = start + view.getUint32(FIXED, true);
  if (payloadEnd > end) fail("a length in the file points past its end");
  const chunks = chunksOf(file.subarray(payloadEnd, end));
  return { header, payload: file.subarray(start, payloadEnd), chunks };
}

/** Data of chunks by tag; of those that are unknown and occur more than once, the last. */
function chunksOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = new Map();
  for (let at = 0, count = 0; at < bytes.length; count++) {
    if (count === MAX_CHUNKS) fail(`the file has more than ${MAX_CHUNKS} chunks`);
    if (at + 8 > bytes.length) fail("the file ends within a chunk");
    const tag = String.fromCharCode(...bytes.subarray(at, at + 4));
    if (!/^[A-Za-z]{4}$/.test(tag)) fail("a chunk's tag is not made of letters");
    const isKnown = KNOWN.includes(tag);
    if (!isKnown && tag[0] < "a") fail(`the file needs chunk ${tag}, unknown here`);
    if (isKnown && found.has(tag)) fail(`chunk ${tag} occurs twice in the file`);
    const end = at + 8 + view.getUint32(at + 4, true);
    if (end > bytes.length) fail("a length in the file points past its end");
    found.set(tag, bytes.slice(at + 8, end));
    at = end;
  }
  if (found.get("grey")?.length) fail("chunk grey holds data");
  return found;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** CRC-32, as in PNG. */
function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** The tensors of dynenc.safetensors, and the numbers of the models that they decode. */
function readTables(file) {
  try {
    const { metadata, tensors } = safetensors(file);
    const models = metadata.models.split(" ").map(Number);
    if (tensors.has("decoder.numbers") && tensors.has("decoder.weights")) return { models, tensors };
  } catch {
    // whatever another file makes the parser trip over
  }
  return fail("the tables are not those of dynenc.safetensors, or are cut short");
}

/** The tensors of a safetensors file, of int8 and int32. */
function safetensors(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const start = 8 + Number(view.getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(
    new TextDecoder().decode(file.subarray(8, start)),
  );
  const tensors = new Map();
  for (const [name, { dtype, data_offsets: [begin, end] }] of Object.entries(entries)) {
    const { buffer } = file.slice(start + begin, start + end);
    if (buffer.byteLength !== end - begin) throw new RangeError(`${name} is cut short`);
    tensors.set(name, dtype === "I8" ? new Int8Array(buffer) : new Int32Array(buffer));
  }
  return { metadata, tensors };
}

/** The fewest bits that a symbol takes, from a coder's tensors: those of the largest frequency. */
function fewestBits(tensors) {
  const [, tables, columns, thresholds] = tensors;
  const end = tensors.length - thresholds;
  let most = 1;
  for (const count of tensors.subarray(end - tables * columns, end)) most = Math.max(most, count);
  return 16 - Math.log2(most);
}

/** RGB -> RGBA, opaque. */
function opaque(rgb) {
  const rgba = new Uint8ClampedArray((rgb.length / 3) * 4).fill(255);
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    rgba[to] = rgb[from];
    rgba[to + 1] = rgb[from + 1];
    rgba[to + 2] = rgb[from + 2];
  }
  return rgba;
}
