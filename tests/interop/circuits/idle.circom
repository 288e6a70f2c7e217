pragma circom 2.0.0;

// Public and private inputs, and an output, that are in no quadratic constraint.
template Idle() {
    signal input a;
    signal input unused[3];
    signal input shown;
    signal output o;
    signal output five;
    o <== a + 2;
    five <== 5;
}

component main {public [shown]} = Idle();
