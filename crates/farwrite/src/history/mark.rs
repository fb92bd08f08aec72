//! `farwrite mark`: names a moment at the vault, which then keeps it. No mark can be taken away from here.

use super::ask::Ask;
use super::show;
use crate::cli::MarkArgs;
use crate::state::State;
use crate::vault::{list_marks, mark_json};
use anyhow::Context;
use farwrite_core::history::Mark;
use std::io::Write;

/// Marks, or lists the marks.
pub(super) fn run(state: &State, args: &MarkArgs) -> anyhow::Result<()> {
    let ask = Ask::open(state, &args.from)?;
    let old = "the vault may be an older Farwrite, which knows no marks";
    let Some(name) = &args.name else {
        return list_marks(&ask.marks().context(old)?, args.json);
    };
    let moment = ask.set_mark(name, args.at.as_deref()).context(old);
    let moment = match moment {
        Err(e)
            if e.chain()
                .any(|c| c.to_string().starts_with("the vault says:")) =>
        {
            // It knows marks, and said why not.
            return Err(e
                .chain()
                .last()
                .map_or_else(|| anyhow::anyhow!(old), |why| anyhow::anyhow!("{why}")));
        }
        other => other?,
    };
    if args.json {
        let marks = ask.marks()?;
        let mark: Option<&Mark> = marks.iter().find(|m| m.name == *name);
        let value = mark.map(mark_json);
        writeln!(
            std::io::stdout(),
            "{}",
            serde_json::to_string_pretty(&value)?
        )?;
        return Ok(());
    }
    println!("marked {name}: {}", show::moment(&moment));
    Ok(())
}
