// SPDX-License-Identifier: GPL-2.0-only
/* Are ftrace's registers behind arch_ftrace_regs()? (6.13 and Debian's 6.12) */
#include <linux/ftrace.h>
unsigned long probe(struct ftrace_regs *fregs);
unsigned long probe(struct ftrace_regs *fregs) { return arch_ftrace_regs(fregs)->regs.ip; }
