//! The completions for shells and the manual page for man(1).
//!
//! Owns: the completions and the manual page. Both are made from the definition of the command line that also makes the
//! help. Both show the name by which the program was called. Refuses: to describe a flag or a command in words of its
//! own.

use std::{ffi::OsStr, io, path::Path};

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, roman},
};

use super::ProgramSpec;

pub(super) fn completions(program: &ProgramSpec, shell: Shell) -> Vec<u8> {
    let (name, mut command) = own(program);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// Makes one manual page for all commands, because an operator often looks for an option without knowing which command
/// has it.
pub(super) fn manual(program: &ProgramSpec) -> io::Result<Vec<u8>> {
    let (_, command) = own(program);
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    commands(&command).to_writer(&mut text)?;
    page.render_options_section(&mut text)?;
    page.render_extra_section(&mut text)?;
    Ok(text)
}

/// Makes the section of the page that lists each command with the options that only this command has.
fn commands(program: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    let everywhere =
        |arg: &Arg| arg.is_hide_set() || program.get_arguments().any(|own| own.get_long() == arg.get_long());
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        roff.control("TP", []);
        let operands = command.get_positionals().filter(|arg| !arg.is_hide_set()).map(|arg| roman(format!(" {arg}")));
        roff.text([bold(command.get_name())].into_iter().chain(operands).collect::<Vec<Inline>>());
        roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
        let own: Vec<_> = command.get_arguments().filter(|arg| !everywhere(arg) && !arg.is_positional()).collect();
        if own.is_empty() {
            continue;
        }
        roff.control("RS", []);
        for arg in own {
            roff.control("TP", []);
            roff.text([bold(arg.to_string())]);
            roff.text([roman(arg.get_help().map(ToString::to_string).unwrap_or_default())]);
        }
        roff.control("RE", []);
    }
    roff
}

/// Returns the name by which the program was called, and the definition of the command line under that name.
fn own(program: &ProgramSpec) -> (&'static str, Command) {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or(&program.name);
    // clap needs a name that lives as long as the process. Leaking the name costs little memory, because the process
    // prints one page and ends.
    let name: &'static str = name.to_owned().leak();
    (name, program.command().name(name))
}
