pragma circom 2.0.0;

// Two inputs that are the same signal once linear constraints are substituted.
template Alias() {
    signal input a;
    signal input b;
    signal output c;
    a === b;
    c <== a * b;
}

component main = Alias();
