pragma circom 2.0.0;

// No public signals: the proof says that the prover knows a factor pair of a private number.
template Hidden() {
    signal input a;
    signal input b;
    signal input c;
    signal square;
    square <== a * a;
    square * b === c;
}

component main = Hidden();
