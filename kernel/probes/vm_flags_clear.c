// SPDX-License-Identifier: GPL-2.0-only
/* Are the flags of a mapping changed by functions only? (6.3) */
#include <linux/mm.h>
void probe(struct vm_area_struct *vma);
void probe(struct vm_area_struct *vma) { vm_flags_mod(vma, VM_DONTCOPY, VM_MAYWRITE); }
