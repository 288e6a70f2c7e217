// snarkjs as a library: key and witness in memory, curve built once, one thread.
//     node snarkjs_warm.mjs SNARKJS_FOLDER CIRCUIT.zkey WITNESS.wtns groth16|plonk|fflonk
// Each line on stdin is answered by one proof: {"cpu_s", "wall_s", "proof", "public"} or {"error"}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, zkey, wtns, protocol] = process.argv.slice(2);
const require = createRequire(folder + "/");
const snarkjs = require(folder);
const inMemory = (path) => ({ type: "mem", data: new Uint8Array(readFileSync(path)) });
const files = [inMemory(zkey), inMemory(wtns)];

// A prover looks for a curve that it has built before, and only builds one, with a worker for
// every CPU, where there is none: so this one is used, and stays.
async function singleThreaded() {
    const name = { 32: "bn128", 48: "bls12381" }[baseFieldBytes(files[0].data)];
    const curve = await snarkjs.curves.getCurveFromName(name, { singleThread: true });
    globalThis[`curve_${name}`] = curve;
}

// Section 2, the header: u32 bytes of an element of the base field. Sections: u32 type, u64 length.
function baseFieldBytes(data) {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    let at = 12;
    while (view.getUint32(at, true) !== 2) at += 12 + Number(view.getBigUint64(at + 4, true));
    return view.getUint32(at + 12, true);
}

async function prove() {
    const begun = process.hrtime.bigint();
    const before = process.cpuUsage();
    const { proof, publicSignals } = await snarkjs[protocol].prove(...files);
    const used = process.cpuUsage(before);
    const wall = Number(process.hrtime.bigint() - begun) / 1e9;
    return { cpu_s: (used.user + used.system) / 1e6, wall_s: wall, proof, public: publicSignals };
}

let ready = null;
for await (const _ of createInterface({ input: process.stdin })) {
    let answer;
    try {
        await (ready ??= singleThreaded());
        answer = await prove();
    } catch (error) {
        answer = { error: String(error?.message ?? error) };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
