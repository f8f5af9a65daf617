//! The pages of runs and sweeps, and the comparison of runs.

use std::path::Path;
use std::process::{Command, Stdio};

use patchdoor_tests::{Bench, SMALL};
use serde_json::Value;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An experiment with a defense and a look at routing, two seeds.
fn experiment() -> String {
    let defense = "\n[[defenses]]\nfine-tuning.training = { epochs = 1 }\n\n[routing]\nswap = true\n";
    let expected = "\n[expected]\nclean-accuracy = 0.5\n";
    SMALL.replace("seeds = [0]", "seeds = [0, 1]") + defense + expected
}

#[test]
fn a_run_ends_by_naming_a_page_that_needs_nothing_else() {
    let bench = Bench::new();
    bench.file("small.toml", &experiment());
    let finished = bench.run(&["run", "small.toml"]).expect(0);
    let last = finished.err().trim_end().lines().last().unwrap_or_default().to_owned();
    let path = last.strip_prefix("page: ").unwrap_or_else(|| panic!("the last line names the page: {last}")).to_owned();
    let page = read(&bench.path().join(&path));

    for part in
        ["class=\"answer\"", "95 % interval", "expected", "Training loss by epoch", "Clean accuracy against attack"]
    {
        assert!(page.contains(part), "no {part:?}");
    }
    for part in ["Trigger capture", "routing of the other version", "config.toml", "SHA-256", "weights.safetensors"] {
        assert!(page.contains(part), "no {part:?}");
    }
    // The only address is the name of SVG's own language.
    let addresses = page.match_indices("http").map(|(at, _)| &page[at..at + 26]).filter(|found| found.contains("://"));
    assert!(
        addresses.clone().all(|found| found == "http://www.w3.org/2000/svg"),
        "{:?}",
        addresses.collect::<Vec<_>>()
    );
    assert!(!page.contains(bench.path().to_str().expect("UTF-8")), "where it lay on this machine is nobody's business");

    // The page is made anew from the records, the same to the last byte, and no check of the run trips over it.
    let directory = bench.run_directory();
    std::fs::write(directory.join("page.html"), "changed").expect("writable");
    let reported = bench.run(&["report", directory.to_str().expect("UTF-8")]).expect(0);
    assert!(reported.err().contains("page.html"), "{}", reported.err());
    assert_eq!(read(&directory.join("page.html")), page);
    let again = bench.run(&["run", "small.toml"]).expect(0);
    assert!(again.err().trim_end().ends_with("page.html"), "{}", again.err());
    bench.run(&["compare", directory.to_str().expect("UTF-8"), directory.to_str().expect("UTF-8")]).expect(0);

    look_with_a_browser(bench.path(), &page, 4 + 1);
}

#[test]
fn quick_runs_are_warned_of_on_their_page_and_labels_are_text() {
    let bench = Bench::new();
    bench.file("<i>quick & \"odd\".toml", SMALL);
    bench.run(&["run", "<i>quick & \"odd\".toml", "--quick"]).expect(0);
    let page = read(&bench.run_directory().join("page.html"));
    assert!(page.contains("its numbers mean nothing") && page.contains("n = 1"), "it warns");
    assert!(!page.contains("<i>") && page.contains("&lt;i&gt;quick &amp; "), "the name of the file is text");
}

#[test]
fn a_sweep_has_a_page_with_its_axis() {
    let bench = Bench::new();
    let sweep = "\n[[sweep.axes]]\nfield = \"poisoning.rate\"\nvalues = [0.01, 0.1]\n";
    bench.file("rates.toml", &(SMALL.replace("rate = 0.1\n", "").replace("epochs = 4", "epochs = 1") + sweep));
    let finished = bench.run(&["run", "rates.toml"]).expect(0);
    let said = finished.err();
    let path = said.trim_end().lines().last().and_then(|line| line.strip_prefix("page: ")).expect("it names the page");
    let page = read(&bench.path().join(path));
    assert!(
        page.contains("Attack success rate (ASR)") && page.contains("\n0.01\n") && page.contains("\n0.1\n"),
        "{page}"
    );
    assert!(page.contains("The runs behind each point"));
    look_with_a_browser(bench.path(), &page, 2);
}

#[test]
fn a_comparison_names_what_differs_and_pairs_seeds() {
    let bench = Bench::new();
    let two = SMALL.replace("seeds = [0]", "seeds = [0, 1]");
    bench.file("a.toml", &two);
    bench.file("b.toml", &two.replace("epochs = 4", "epochs = 2"));
    bench.run(&["run", "a.toml", "b.toml"]).expect(0);
    let runs = std::fs::read_dir(bench.path().join("runs")).expect("there are runs");
    let mut runs = runs.map(|entry| entry.expect("readable").path()).filter(|path| path.join("summary.json").exists());
    let mut folders = runs.by_ref().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>();
    folders.sort();
    let [a, b] = folders.as_slice() else { panic!("two runs: {folders:?}") };

    let text = bench.run(&["compare", a, b]).expect(0).out();
    assert!(text.lines().any(|line| line.split_whitespace().eq(["training.epochs", "4", "2"])), "{text}");
    let document = bench.run(&["compare", a, b, "--json"]).expect(0).out();
    let document: Value = serde_json::from_str(&document).expect("one document");
    assert_eq!(document["config"].as_array().map(Vec::len), Some(1), "{}", document["config"]);
    let metrics = document["metrics"].as_array().expect("a list");
    let asr = metrics.iter().find(|metric| metric["name"] == "asr").expect("both have it");
    for seed in ["0", "1"] {
        let of = |run: usize| asr["values"][run]["values"][seed].as_f64().expect("a rate");
        let difference = asr["differences"][0]["differences"][seed].as_f64().expect("both have the seed");
        assert!((difference - (of(1) - of(0))).abs() < 1e-12, "{asr}");
    }
    assert_eq!(asr["differences"][0]["interval-95"].as_array().map(Vec::len), Some(2));

    let refused = bench.run(&["compare", a, "runs/none"]).expect(2);
    assert!(refused.err().contains("runs/none has no summary.json"), "{}", refused.err());
}

/// Opens a page in headless Chromium on a phone's width, if there is one: all charts are drawn, nothing is wider than the
/// screen, tables sort, the console is silent.
#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn look_with_a_browser(folder: &Path, page: &str, charts: usize) {
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let version = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    }) else {
        eprintln!("skipped: no Chromium to look at the page with");
        return;
    };
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    let script = r"
      const frame = document.querySelector('iframe');
      frame.addEventListener('load', () => {
        const inside = frame.contentDocument;
        const drawn = [...inside.querySelectorAll('.chart > svg')].filter((svg) => svg.getBoundingClientRect().height > 100);
        const heading = inside.querySelector('thead th');
        heading.querySelector('button').click();
        const root = inside.documentElement;
        const measured = [root.clientWidth, root.scrollWidth, drawn.length, heading.getAttribute('aria-sort')];
        document.body.append('measured:' + measured.join(','));
      });";
    let html = format!(
        "<body><iframe width=360 height=800 style=\"border:0\" srcdoc=\"{page}\"></iframe><script>{script}</script></body>"
    );
    let path = folder.join("phone.html");
    std::fs::write(&path, html).expect("the folder is writable");
    let profile = format!("--user-data-dir={}", folder.join("browser").display());
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
    ]);
    command.args([&profile, "--dump-dom"]).arg(format!("file://{}", path.display()));
    let output = command.output().expect("the browser starts");
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let console = log.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>();
    assert!(console.is_empty(), "{console:?}");
    let measured = dom.rsplit("measured:").next().and_then(|rest| rest.split('<').next()).unwrap_or_default().trim();
    assert_eq!(measured, format!("360,360,{charts},ascending"), "{log}");
}
