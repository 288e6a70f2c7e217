// snarkjs as a server: one request a line on stdin, one answer a line on stdout.
// Request: {"call": "groth16.verify", "args": [...]}; answer: {"result": ...} or {"error": text}.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

const require = createRequire(process.argv[2] + "/");
const snarkjs = require("snarkjs");
console.log = console.error; // circuits log; stdout is for answers

const plain = (key, value) =>
    typeof value === "bigint" ? value.toString() : value instanceof Uint8Array ? Buffer.from(value).toString("hex") : value;

async function answer(line) {
    const { call, args } = JSON.parse(line);
    if (call === "powersOfTau.newAccumulator") args[0] = await snarkjs.curves.getCurveFromName(args[0]);
    // It warns about a wrong witness without asking whether there is a logger.
    if (call === "wtns.check") args.push({ info() {}, warn() {} });
    const [group, name] = call.split(".");
    const result = await snarkjs[group][name](...args);
    // Some answers hold the curve, which is large and circular.
    return { result: call === "r1cs.info" ? { nConstraints: result.nConstraints, nVars: result.nVars } : result ?? null };
}

for await (const line of createInterface({ input: process.stdin })) {
    let reply;
    try {
        reply = await answer(line);
    } catch (error) {
        reply = { error: String(error.message ?? error) };
    }
    process.stdout.write(JSON.stringify(reply, plain) + "\n");
}
process.exit(0);
