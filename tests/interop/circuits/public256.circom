pragma circom 2.0.0;

// 256 public signals.
template Squares(n) {
    signal input values[n];
    signal input sum;
    signal squares[n];
    var total = 0;
    for (var i = 0; i < n; i++) {
        squares[i] <== values[i] * values[i];
        total += squares[i];
    }
    sum === total;
}

component main {public [values]} = Squares(256);
