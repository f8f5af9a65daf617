//! What shells and `man` are told about this program.

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use patchdoor_cli::{Stop, print};

use crate::arguments::Arguments;

/// The command line of the program when it is called by its name, not through cargo.
fn command() -> clap::Command {
    Arguments::command().bin_name("patchdoor")
}

/// Prints what completes the command line in a shell.
pub(crate) fn completions(shell: Shell) -> Result<(), Stop> {
    print(&completions_for(shell))
}

fn completions_for(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "patchdoor", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Prints the manual page: the program, then each of its commands.
pub(crate) fn manual() -> Result<(), Stop> {
    print(&page().map_err(Stop::failed)?)
}

fn page() -> std::io::Result<String> {
    let mut program = command();
    // Commands get their usage from it.
    program.build();
    let mut page = Vec::new();
    let manual = Man::new(program.clone()).section("1");
    manual.render(&mut page)?;
    for command in program.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help") {
        let manual = Man::new(command.clone());
        page.extend(format!(".SH \"PATCHDOOR {}\"\n", command.get_name().to_uppercase()).into_bytes());
        manual.render_synopsis_section(&mut page)?;
        manual.render_description_section(&mut page)?;
        manual.render_options_section(&mut page)?;
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_learns_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions_for(shell);
            for command in command().get_subcommands().filter(|command| !command.is_hide_set()) {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("retry-failed") && !script.contains("cargo xtask run "), "{shell}");
        }
    }

    #[test]
    fn the_manual_has_every_command_with_its_options() {
        let page = page().expect("it is written into memory");
        assert!(page.contains(".TH patchdoor 1") || page.contains(".TH PATCHDOOR 1"), "{}", &page[..200]);
        for command in command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(
                page.contains(&format!("PATCHDOOR {}", command.get_name().to_uppercase())),
                "{}",
                command.get_name()
            );
        }
        // Roff writes a minus as \\-.
        assert!(page.contains("retry\\-failed"), "an option of run");
        assert!(!page.contains("\\-\\-tied"), "what is hidden is not shown");
    }
}
