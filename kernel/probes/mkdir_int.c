// SPDX-License-Identifier: GPL-2.0-only
/* Does vfs_mkdir() return an int, and not the dentry? (until 6.14) */
#include <linux/fs.h>
_Static_assert(__builtin_types_compatible_p(__typeof__(vfs_mkdir(NULL, NULL, NULL, 0)), int), "returns a dentry");
