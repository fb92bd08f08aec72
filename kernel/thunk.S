/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * unsigned long farwrite_original(a, b, c, d, e, f, past): goes on in a function right behind its call to __fentry__, which
 * both keeps ftrace from being entered again and never lands on an ENDBR that the kernel may have sealed away. The seventh
 * argument lies above the return address; pushed once more, the return goes there, and the function returns to our caller.
 */
#include <linux/linkage.h>
#include <asm/unwind_hints.h>

SYM_FUNC_START(farwrite_original)
	pushq	8(%rsp)
	UNWIND_HINT_FUNC
	RET
SYM_FUNC_END(farwrite_original)
