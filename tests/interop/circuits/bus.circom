pragma circom 2.2.0;

bus Point() {
    signal x;
    signal y;
}

// Inputs that are buses, alone and in an array.
template OnLine(n) {
    input Point() origin;
    input Point() points[n];
    signal output sum;
    var total = 0;
    signal products[n];
    for (var i = 0; i < n; i++) {
        products[i] <== points[i].x * points[i].y;
        total += products[i];
    }
    sum <== total + origin.x - 2 * origin.y;
}

component main {public [origin]} = OnLine(3);
