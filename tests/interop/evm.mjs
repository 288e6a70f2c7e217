// Compiles contracts and calls them in an Ethereum virtual machine.
// stdin: {"contracts": [{"source": text, "calls": [[word, ...], ...], "gas": for each call}, ...], "compiler": npm's
// name of a solc, "settings": for it, "warnings": whether its warnings pass}, words as hex without 0x.
// stdout: for each contract {"version": of the compiler, "selector": of its function, "bytes": size of the deployed
// code, "results": [bool or "reverted", ...], "used": gas of each call}
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.argv[2] + "/");
const { createEVM } = require("@ethereumjs/evm");

const { contracts, compiler, settings, warnings } = JSON.parse(readFileSync(0, "utf8"));
const solc = require(compiler);
const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const plenty = 30_000_000n;

const evm = await createEVM();
// As in a transaction, precompiled contracts are warm.
for (let i = 1; i < 18; i++) evm.journal.addAlwaysWarmAddress("0x" + i.toString(16).padStart(40, "0"));

function compile(source) {
    const output = JSON.parse(solc.compile(JSON.stringify({
        language: "Solidity",
        sources: { "verifier.sol": { content: source } },
        settings: {
            ...settings,
            outputSelection: { "*": { "*": ["evm.bytecode.object", "evm.methodIdentifiers"] } },
        },
    })));
    const problems = (output.errors ?? []).filter((e) => !warnings || e.severity === "error");
    if (problems.length) {
        console.error(problems.map((e) => e.formattedMessage).join("\n"));
        process.exit(1);
    }
    const [{ evm: compiled }] = Object.values(output.contracts["verifier.sol"]);
    return compiled;
}

const answers = [];
for (const { source, calls, gas } of contracts) {
    const compiled = compile(source);
    const [selector] = Object.values(compiled.methodIdentifiers);
    const deployed = await evm.runCode({ code: bytes(compiled.bytecode.object), gasLimit: plenty });
    if (deployed.exceptionError) throw deployed.exceptionError;
    const code = deployed.returnValue;
    const results = [], used = [];
    for (const words of calls) {
        const data = bytes(selector + words.join(""));
        const { returnValue, exceptionError, executionGasUsed } =
            await evm.runCode({ code, data, gasLimit: BigInt(gas ?? plenty) });
        used.push(Number(executionGasUsed));
        results.push(exceptionError ? "reverted" : BigInt("0x" + Buffer.from(returnValue).toString("hex")) === 1n);
    }
    answers.push({ version: solc.version(), selector, bytes: code.length, results, used });
}
console.log(JSON.stringify(answers));
process.exit(0);  // compilers of some releases keep the process alive
