// Compiles a contract and calls it in an Ethereum virtual machine.
// stdin: {"source": text, "calls": [[word, ...], ...], "compiler": npm's name of a solc, "settings": for it,
// "gas": for each call}, words as hex without 0x.
// stdout: {"version": of the compiler, "bytes": size of the deployed code, "results": [bool or "reverted", ...],
// "used": gas of each call}
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.argv[2] + "/");
const { createEVM } = require("@ethereumjs/evm");

const { source, calls, compiler, settings, gas } = JSON.parse(readFileSync(0, "utf8"));
const solc = require(compiler);
const output = JSON.parse(solc.compile(JSON.stringify({
    language: "Solidity",
    sources: { "verifier.sol": { content: source } },
    settings: {
        ...settings,
        outputSelection: { "*": { "*": ["evm.bytecode.object", "evm.methodIdentifiers"] } },
    },
})));
const problems = output.errors ?? [];
if (problems.length) {
    console.error(problems.map((e) => e.formattedMessage).join("\n"));
    process.exit(1);
}
const { evm: compiled } = output.contracts["verifier.sol"].Groth16Verifier;
const selector = Object.values(compiled.methodIdentifiers)[0];
const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));

const evm = await createEVM();
const gasLimit = 30_000_000n;
const deployed = await evm.runCode({ code: bytes(compiled.bytecode.object), gasLimit });
if (deployed.exceptionError) throw deployed.exceptionError;
const code = deployed.returnValue;
const results = [], used = [];
for (const words of calls) {
    const data = bytes(selector + words.join(""));
    const { returnValue, exceptionError, executionGasUsed } =
        await evm.runCode({ code, data, gasLimit: BigInt(gas ?? gasLimit) });
    used.push(Number(executionGasUsed));
    results.push(exceptionError ? "reverted" : BigInt("0x" + Buffer.from(returnValue).toString("hex")) === 1n);
}
console.log(JSON.stringify({ version: solc.version(), bytes: code.length, results, used }));
process.exit(0);  // compilers of some releases keep the process alive
