// 32-bit words, and sums and products of them that hand a carry on.
//
// On a device these are PTX instructions over its carry flag (PTX ISA, "Extended-Precision Integer
// Arithmetic Instructions"). A mad.lo.cc and the madc.hi.cc after it with the same factors become one
// IMAD.WIDE, if they write the two words of one 64-bit register pair. Each instruction is a volatile
// statement of its own: these keep their order, and nothing that a compiler puts in between writes the flag.
// Compiled for a host, the same functions keep the flag in a variable.
//
// In a name, a c after the operation takes the flag, and _cc leaves one. A difference leaves its borrow.

#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#ifdef __CUDA_ARCH__

#define DEVICE __device__ __forceinline__

#define CARRY_OF_TWO(name, instruction)                                                 \
    DEVICE u32 name(u32 a, u32 b) {                                                     \
        u32 result;                                                                     \
        asm volatile(instruction " %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));       \
        return result;                                                                  \
    }

#define CARRY_OF_THREE(name, instruction)                                                          \
    DEVICE u32 name(u32 a, u32 b, u32 c) {                                                         \
        u32 result;                                                                                \
        asm volatile(instruction " %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));      \
        return result;                                                                             \
    }

CARRY_OF_TWO(add_cc, "add.cc.u32")
CARRY_OF_TWO(addc_cc, "addc.cc.u32")
CARRY_OF_TWO(addc, "addc.u32")
CARRY_OF_TWO(sub_cc, "sub.cc.u32")
CARRY_OF_TWO(subc_cc, "subc.cc.u32")
CARRY_OF_TWO(subc, "subc.u32")
CARRY_OF_THREE(mad_lo_cc, "mad.lo.cc.u32")
CARRY_OF_THREE(madc_lo_cc, "madc.lo.cc.u32")
CARRY_OF_THREE(madc_lo, "madc.lo.u32")
CARRY_OF_THREE(madc_hi_cc, "madc.hi.cc.u32")
CARRY_OF_THREE(madc_hi, "madc.hi.u32")

#undef CARRY_OF_TWO
#undef CARRY_OF_THREE

// −x. The assembler must not see that: it would move the sign into the products of −x, and then leave each
// of them as two instructions.
DEVICE u32 negated(u32 x) {
    u32 result;
    asm("add.u32 %0, %1, 1;" : "=r"(result) : "r"(~x));
    return result;
}

#else

#define DEVICE inline

inline thread_local u32 carry_flag = 0;

DEVICE u32 leave_carry(u64 sum) {
    carry_flag = (sum >> 32) & 1;
    return static_cast<u32>(sum);
}

DEVICE u32 low(u32 a, u32 b) { return a * b; }
DEVICE u32 high(u32 a, u32 b) { return static_cast<u32>(static_cast<u64>(a) * b >> 32); }

DEVICE u32 add_cc(u32 a, u32 b) { return leave_carry(static_cast<u64>(a) + b); }
DEVICE u32 addc_cc(u32 a, u32 b) { return leave_carry(static_cast<u64>(a) + b + carry_flag); }
DEVICE u32 addc(u32 a, u32 b) { return a + b + carry_flag; }
DEVICE u32 sub_cc(u32 a, u32 b) { return leave_carry(static_cast<u64>(a) - b); }
DEVICE u32 subc_cc(u32 a, u32 b) { return leave_carry(static_cast<u64>(a) - b - carry_flag); }
DEVICE u32 subc(u32 a, u32 b) { return a - b - carry_flag; }
DEVICE u32 mad_lo_cc(u32 a, u32 b, u32 c) { return add_cc(low(a, b), c); }
DEVICE u32 madc_lo_cc(u32 a, u32 b, u32 c) { return addc_cc(low(a, b), c); }
DEVICE u32 madc_lo(u32 a, u32 b, u32 c) { return addc(low(a, b), c); }
DEVICE u32 madc_hi_cc(u32 a, u32 b, u32 c) { return addc_cc(high(a, b), c); }
DEVICE u32 madc_hi(u32 a, u32 b, u32 c) { return addc(high(a, b), c); }
DEVICE u32 negated(u32 x) { return ~x + 1; }

#endif
