pragma circom 2.0.0;

// A private input in no constraint, between others.
template Unused() {
    signal input a;
    signal input unused;
    signal input b;
    signal output c;
    c <== a * b;
}

component main = Unused();
