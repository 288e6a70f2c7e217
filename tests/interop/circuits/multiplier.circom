pragma circom 2.0.0;

// Arrays of inputs, public ones that are not first in the file, an assertion and a log.
template Chain(n) {
    signal input factors[n];
    signal input pairs[2][2];
    signal input scale;
    signal output product;
    signal output mixed;

    assert(scale != 7);
    signal partial[n];
    partial[0] <== factors[0] * pairs[0][0];
    for (var i = 1; i < n; i++) {
        partial[i] <== partial[i - 1] * factors[i] + pairs[1][1];
    }
    log("scale", scale);
    product <== partial[n - 1] * scale;
    mixed <== pairs[0][1] * pairs[1][0] - scale;
}

component main {public [pairs]} = Chain(5);
