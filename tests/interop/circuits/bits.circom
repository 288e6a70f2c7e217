pragma circom 2.0.0;

// A witness of mostly zeros and ones.
template Bits(n) {
    signal input value;
    signal output ones;
    signal bit[n];
    var sum = 0;
    var count = 0;
    for (var i = 0; i < n; i++) {
        bit[i] <-- (value >> i) & 1;
        bit[i] * (bit[i] - 1) === 0;
        sum += bit[i] * 2**i;
        count += bit[i];
    }
    sum === value;
    ones <== count;
}

component main {public [value]} = Bits(48);
