// Midnight's own prover as its npm package has it (WASM, one thread): key, circuit, parameters in memory.
//     node midnight_warm.mjs FOLDER_OF_PACKAGES CIRCUIT.prover PARAMETERS
// Beside CIRCUIT.prover stand .verifier, .bzkir and .preimage. Each line on stdin is answered by one proof:
// {"cpu_s", "wall_s", "proof"} with the proof in its envelope, in hexadecimal; or {"error"}. It verifies
// its proof before it answers, as ours does.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [packages, prover, parameters] = process.argv.slice(2);
const beside = (end) => readFileSync(prover.replace(/prover$/, end));
const { prove } = await import(
    pathToFileURL(createRequire(`${packages}/`).resolve("@midnight-ntwrk/zkir-v2"))
);
const material = { proverKey: beside("prover"), verifierKey: beside("verifier"), ir: beside("bzkir") };
const srs = readFileSync(parameters);
const provider = { lookupKey: async () => material, getParams: async () => srs };

for await (const _ of createInterface({ input: process.stdin })) {
    let answer;
    try {
        const begun = process.hrtime.bigint();
        const before = process.cpuUsage();
        const proof = await prove(beside("preimage"), provider);
        const used = process.cpuUsage(before);
        const wall_s = Number(process.hrtime.bigint() - begun) / 1e9;
        const cpu_s = (used.user + used.system) / 1e6;
        answer = { cpu_s, wall_s, proof: Buffer.from(proof).toString("hex") };
    } catch (error) {
        answer = { error: String(error?.message ?? error) };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
