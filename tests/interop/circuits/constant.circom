pragma circom 2.0.0;

// Nothing is left of it when linear constraints are substituted.
template Constant() {
    signal input a;
    a === 15;
}

component main = Constant();
