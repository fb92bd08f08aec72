//! The programs of bpf/farwrite.bpf.c: which function of the kernel each hooks, and what is missed without it.

/// A filesystem whose writes the programs see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fs {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

impl Fs {
    /// By its name in `/proc/self/mountinfo`. The ext4 driver serves ext3 as well.
    pub(super) fn by_name(name: &str) -> Option<Fs> {
        Some(match name {
            "ext4" | "ext3" => Fs::Ext4,
            "xfs" => Fs::Xfs,
            "btrfs" => Fs::Btrfs,
            "tmpfs" => Fs::Tmpfs,
            _ => return None,
        })
    }

    /// Names of those that [`Fs::by_name`] knows, for people.
    pub(super) const NAMES: &str = "ext4, xfs, btrfs, tmpfs";
}

/// When a program has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Always.
    Always,
    /// If there is a root on this filesystem.
    On(Fs),
    /// On this filesystem, if the kernel has no function of that name.
    OnUnless(Fs, &'static str),
    /// Where the kernel has the function.
    IfThere,
}

/// A program: its name in the object file, the function it hooks, when it is needed.
pub(super) struct Hook {
    pub program: &'static str,
    pub function: &'static str,
    /// How many arguments the function has as the program knows it: with another number, the result is elsewhere.
    pub arguments: usize,
    pub need: Need,
}

const fn hook(program: &'static str, function: &'static str, arguments: usize, need: Need) -> Hook {
    Hook {
        program,
        function,
        arguments,
        need,
    }
}

/// All programs.
pub(super) const HOOKS: [Hook; 26] = [
    hook(
        "ext4_file_write_iter",
        "ext4_file_write_iter",
        2,
        Need::On(Fs::Ext4),
    ),
    hook(
        "xfs_file_write_iter",
        "xfs_file_write_iter",
        2,
        Need::On(Fs::Xfs),
    ),
    hook(
        "btrfs_file_write_iter",
        "btrfs_file_write_iter",
        2,
        Need::On(Fs::Btrfs),
    ),
    // tmpfs has a function of its own since 6.6.
    hook(
        "shmem_file_write_iter",
        "shmem_file_write_iter",
        2,
        Need::IfThere,
    ),
    hook(
        "generic_file_write_iter",
        "generic_file_write_iter",
        2,
        Need::OnUnless(Fs::Tmpfs, "shmem_file_write_iter"),
    ),
    hook("shmem_mmap", "shmem_mmap", 2, Need::On(Fs::Tmpfs)),
    hook(
        "locks_remove_file",
        "locks_remove_file",
        1,
        Need::On(Fs::Tmpfs),
    ),
    hook(
        "iomap_dio_complete_entry",
        "iomap_dio_complete",
        1,
        Need::Always,
    ),
    hook(
        "iomap_dio_complete_exit",
        "iomap_dio_complete",
        1,
        Need::Always,
    ),
    hook(
        "fault_dirty_shared_page",
        "fault_dirty_shared_page",
        1,
        Need::Always,
    ),
    hook("vfs_fallocate", "vfs_fallocate", 4, Need::Always),
    hook(
        "vfs_clone_file_range",
        "vfs_clone_file_range",
        6,
        Need::Always,
    ),
    hook(
        "vfs_copy_file_range",
        "vfs_copy_file_range",
        6,
        Need::Always,
    ),
    hook("notify_change", "notify_change", 4, Need::Always),
    hook("vfs_setxattr", "__vfs_setxattr_noperm", 6, Need::Always),
    hook(
        "vfs_removexattr",
        "__vfs_removexattr_locked",
        4,
        Need::Always,
    ),
    // Since 6.2; before, ACLs pass through the hooks of extended attributes.
    hook("vfs_set_acl", "vfs_set_acl", 4, Need::IfThere),
    hook("vfs_remove_acl", "vfs_remove_acl", 3, Need::IfThere),
    hook("vfs_fileattr_set", "vfs_fileattr_set", 3, Need::Always),
    hook("d_instantiate", "d_instantiate", 2, Need::Always),
    hook("d_instantiate_new", "d_instantiate_new", 2, Need::Always),
    hook("vfs_unlink", "vfs_unlink", 4, Need::Always),
    hook("vfs_rmdir", "vfs_rmdir", 3, Need::Always),
    hook("vfs_rename_entry", "vfs_rename", 1, Need::Always),
    hook("vfs_rename_exit", "vfs_rename", 1, Need::Always),
    hook(
        "generic_shutdown_super",
        "generic_shutdown_super",
        1,
        Need::Always,
    ),
];

/// Which programs are wanted for roots on `filesystems`, given which functions the kernel has. `Err`: a function that is not
/// there but has to be.
pub(super) fn wanted(
    filesystems: &[Fs],
    has: impl Fn(&str) -> bool,
) -> Result<Vec<&'static Hook>, &'static str> {
    let mut wanted = Vec::new();
    for h in &HOOKS {
        let (want, must) = match h.need {
            Need::Always => (true, true),
            Need::On(fs) => (filesystems.contains(&fs), true),
            Need::OnUnless(fs, other) => (filesystems.contains(&fs) && !has(other), true),
            Need::IfThere => (true, false),
        };
        if !want {
            continue;
        }
        match has(h.function) {
            true => wanted.push(h),
            false if must => return Err(h.function),
            false => {}
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(w: &[&'static Hook]) -> Vec<&'static str> {
        w.iter().map(|h| h.program).collect()
    }

    #[test]
    fn only_what_the_roots_filesystems_need_is_wanted() {
        let all = programs(&wanted(&[Fs::Ext4], |_| true).unwrap());
        assert!(all.contains(&"ext4_file_write_iter") && all.contains(&"vfs_rename_exit"));
        assert!(!all.contains(&"xfs_file_write_iter") && !all.contains(&"shmem_mmap"));
    }

    #[test]
    fn tmpfs_is_hooked_by_whichever_function_the_kernel_has() {
        let new = programs(&wanted(&[Fs::Tmpfs], |_| true).unwrap());
        assert!(new.contains(&"shmem_file_write_iter"));
        assert!(!new.contains(&"generic_file_write_iter"));
        let old = programs(&wanted(&[Fs::Tmpfs], |f| !f.starts_with("shmem_file")).unwrap());
        assert!(old.contains(&"generic_file_write_iter"));
    }

    #[test]
    fn a_missing_function_is_named_unless_it_is_optional() {
        assert!(wanted(&[Fs::Ext4], |f| f != "vfs_set_acl").is_ok());
        assert_eq!(
            wanted(&[Fs::Ext4], |f| f != "vfs_rename").err(),
            Some("vfs_rename")
        );
    }
}
