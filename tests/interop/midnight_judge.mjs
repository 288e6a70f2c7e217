// Midnight's own verifier, which no package exports: prove() of zkir-v2 ends with it, on bytes in WASM memory.
// usage: midnight_judge.mjs PACKAGES JOB.json; one process for each run, as leftovers of one spoil the next.
// JOB: {prover, verifier, bzkir, preimage, srs, binding (text or null), made, judged (path or null)}.
//
// Randomness is SHA-256 of a counter, so that two processes make the same proof. Without `judged` that proof is
// written to `made`. With it, the same run is repeated: once its proof is there, and before it is verified (the
// second time that parameters are asked for), the bytes of `judged` are put in its place.
// Answer, one line of JSON: {verdict: "made" | "accepted" | "rejected" | "error", why}.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [, , packages, jobFile] = process.argv;
const job = JSON.parse(readFileSync(jobFile, "utf8"));
const answer = (verdict, why = "") => {
    writeSync(1, JSON.stringify({ verdict, why: String(why) }) + "\n");
    process.exit(0);
};

let blocks = 0;
Object.defineProperty(globalThis.crypto, "getRandomValues", {
    value(view) {
        const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
        for (let at = 0; at < bytes.length; at += 32) {
            const block = createHash("sha256").update(`judge ${blocks++}`).digest();
            bytes.set(block.subarray(0, Math.min(32, bytes.length - at)), at);
        }
        return view;
    },
});

// The package keeps its memory to itself: whoever makes the instance sees it.
let memory = null;
WebAssembly.Instance = new Proxy(WebAssembly.Instance, {
    construct(target, args) {
        const instance = Reflect.construct(target, args);
        memory = instance.exports.memory ?? memory;
        return instance;
    },
});
const entry = createRequire(`${packages}/`).resolve("@midnight-ntwrk/zkir-v2");
const { prove } = await import(pathToFileURL(entry));

const judged = job.judged === null ? null : readFileSync(job.judged);
let asked = 0;
let places = 0;
const provider = {
    lookupKey: async () => ({
        proverKey: readFileSync(job.prover),
        verifierKey: readFileSync(job.verifier),
        ir: readFileSync(job.bzkir),
    }),
    async getParams() {
        asked += 1;
        if (asked === 2 && judged !== null) {
            const made = readFileSync(job.made);
            const bytes = Buffer.from(memory.buffer);
            let found = -1;
            for (let at = bytes.indexOf(made); at >= 0; at = bytes.indexOf(made, at + 1)) {
                found = at;
                places += 1;
            }
            if (places !== 1) throw new Error(`the proof is at ${places} places`);
            judged.copy(bytes, found);
        }
        return readFileSync(job.srs);
    },
};

// The ledger's envelope: a tag, a compact length of two or four bytes, the proof.
function raw(bytes) {
    const tag = Buffer.from("midnight:proof[v5]:");
    if (!bytes.subarray(0, tag.length).equals(tag)) throw new Error("prove() answers without the ledger's tag");
    return bytes.subarray(tag.length + ((bytes[tag.length] & 3) === 1 ? 2 : 4));
}

let proof;
try {
    const binding = job.binding === null ? undefined : BigInt(job.binding);
    proof = raw(Buffer.from(await prove(readFileSync(job.preimage), provider, binding)));
} catch (error) {
    const why = error.message ?? error;
    if (places === 1 && String(why).includes("Invalid proof")) answer("rejected", why);
    answer("error", why);
}
if (asked !== 2) answer("error", `parameters were asked for ${asked} times`);
if (judged === null) {
    writeFileSync(job.made, proof);
    answer("made");
}
if (places !== 1 || !proof.equals(judged)) answer("error", "another proof was verified");
answer("accepted");
