// Midnight's clients of a proof server as a server: one request a line on stdin, one answer a line on stdout.
// Runs as the text of `node --input-type=module -e`, in the folder that has the packages.
//
// Request: {call, url, client: "js" | "wallet", ...}. Answer: {result} or {error: text}.
//   check {preimage, location, keys}           -> entries: null, or how many are skipped
//   prove {preimage, location, keys, binding}  -> the body of the answer, in hexadecimal
//   transaction {outputs}                      -> {asked: locations, wellFormed: true, or why not}
// preimage: a path. keys: {prover, verifier, bzkir}, paths, or null. "js" has keys and headers, "wallet" neither.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import * as ledger from "@midnight-ntwrk/ledger-v8";
import { httpClientProvingProvider } from "@midnight-ntwrk/midnight-js-http-client-proof-provider";
import { HttpProverClient } from "@midnight-ntwrk/wallet-sdk-prover-client/effect";
import { Effect } from "effect";

console.log = console.warn = console.error; // stdout is for answers

const zkConfigs = (keys) => ({
    async get() {
        if (keys === null) throw new Error("no keys");
        const [proverKey, verifierKey, zkir] = ["prover", "verifier", "bzkir"].map((name) => readFileSync(keys[name]));
        return { circuitId: "circuit", proverKey, verifierKey, zkir };
    },
});

async function provider({ client, url, keys = null, headers = {}, timeout }) {
    if (client === "js") return httpClientProvingProvider(url, zkConfigs(keys), { headers, timeout });
    const made = await Effect.runPromise(HttpProverClient.create({ url: new URL(url) }));
    return made.asProvingProvider();
}

function transaction(outputs) {
    const token = ledger.shieldedToken().raw;
    const keys = ledger.ZswapSecretKeys.fromSeed(new Uint8Array(32).fill(7));
    let offer;
    for (let i = 0; i < outputs; i++) {
        const coin = ledger.createShieldedCoinInfo(token, 5n);
        const output = ledger.ZswapOutput.new(coin, 0, keys.coinPublicKey, keys.encryptionPublicKey);
        const one = ledger.ZswapOffer.fromOutput(output, token, 5n);
        offer = offer === undefined ? one : offer.merge(one);
    }
    return ledger.Transaction.fromParts("undeployed", offer);
}

function wellFormed(proven) {
    const strictness = new ledger.WellFormedStrictness();
    strictness.enforceBalancing = false; // the coins come from nowhere
    try {
        proven.wellFormed(ledger.LedgerState.blank("undeployed"), strictness, new Date());
        return true;
    } catch (error) {
        return String(error.message ?? error);
    }
}

const calls = {
    async check(request) {
        const proving = await provider(request);
        const found = await proving.check(readFileSync(request.preimage), request.location);
        return found.map((entry) => (entry === undefined || entry === null ? null : Number(entry)));
    },
    async prove(request) {
        const proving = await provider(request);
        const binding = request.binding === undefined ? undefined : BigInt(request.binding);
        const proof = await proving.prove(readFileSync(request.preimage), request.location, binding);
        return Buffer.from(proof).toString("hex");
    },
    async transaction(request) {
        const proving = await provider(request);
        const asked = [];
        const noted = {
            check: (...args) => proving.check(...args),
            prove: (preimage, location, binding) => {
                asked.push(location);
                return proving.prove(preimage, location, binding);
            },
        };
        const proven = await transaction(request.outputs).prove(noted, ledger.CostModel.initialCostModel());
        return { asked, wellFormed: wellFormed(proven) };
    },
};

for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    let answer;
    try {
        answer = { result: await calls[request.call](request) };
    } catch (error) {
        answer = { error: String(error?.message ?? error) };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
