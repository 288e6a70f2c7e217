// Powers by the bits of an exponent: with factors[m] = g^(2^m), the product over the bits m that are set in e is g^e;
// with the factors in another order, it is a power whose exponent has its bits in that order.

#pragma once

#include "field.cuh"

// Π factors[m] over the bits m that are set in e.
DEVICE Fr product_of_bits(const Fr* factors, u64 e) {
    Fr product = Fr::one();
#pragma unroll 1
    for (i64 m = 0; e >> m; m++) {
        if (e >> m & 1) product = product * load(factors, m);
    }
    return product;
}
