//! The pages of runs and sweeps, the page about all of them, and comparisons.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use patchdoor_tests::{Bench, SMALL, copy, files, workspace};
use serde_json::Value;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An experiment with a defense and a look at routing, two seeds.
fn experiment() -> String {
    let defense = "\n[[defenses]]\nfine-tuning.training = { epochs = 1 }\n";
    let routing = "\n[routing]\nswap = true\nper-epoch = true\nper-epoch-images = 20\n";
    let expected = "\n[expected]\nclean-accuracy = 0.5\n";
    SMALL.replace("seeds = [0]", "seeds = [0, 1]") + defense + routing + expected
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
    for part in [
        "What is taken for what",
        "Trigger capture",
        "routing of the other version",
        "config.toml",
        "SHA-256",
        "weights.safetensors",
    ] {
        assert!(page.contains(part), "no {part:?}");
    }
    for part in ["The attack by epoch", "Taken for what the attacker wants", "Not taken for it"] {
        assert!(page.contains(part), "no {part:?}");
    }
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
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

    // Two seeds have a slider, and in the first each of ten classes.
    look_with_a_browser(bench.path(), &page, 4 + 2 + 2, 2 + 10);
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
    look_with_a_browser(bench.path(), &page, 2, 0);
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
    assert!(refused.err().contains("runs/none is no run or sweep"), "{}", refused.err());
}

/// A copy of a run in the same folder under another name; its weights, which no page shows, are left out.
fn copied(run: &Path, name: &str) -> PathBuf {
    let to = run.with_file_name(name);
    copy(run, &to);
    for weights in files(&to).into_iter().filter(|path| path.ends_with("weights.safetensors")) {
        std::fs::remove_file(weights).expect("it can go");
    }
    to
}

#[test]
fn the_overview_of_two_hundred_runs_opens_at_once_and_says_what_is_damaged() {
    let bench = Bench::new();
    bench.file("small.toml", &SMALL.replace("epochs = 4", "epochs = 1"));
    bench.run(&["run", "small.toml"]).expect(0);
    let run = bench.run_directory();
    assert!(!read(&run.join("page.html")).contains("-0.0"), "without a defense none takes time");
    let hostile = "a<b>&'x' #?%41";
    for number in 1..=196 {
        copied(&run, &format!("copy-{number:03}"));
    }
    copied(&run, hostile);
    std::fs::write(copied(&run, "damaged-1").join("summary.json"), "{}").expect("writable");
    std::fs::write(copied(&run, "damaged-2").join("seed-0/metrics.jsonl"), "{}").expect("writable");
    std::fs::create_dir(run.with_file_name("begun-1.partial")).expect("made");

    let reported = bench.run(&["report", "runs"]).expect(1);
    let said = reported.err();
    assert!(said.trim_end().ends_with("overview: runs/overview.html\nboard: runs/board.html"), "{said}");
    let left_out = said.lines().filter(|line| line.starts_with("left out: runs/damaged-")).collect::<Vec<_>>();
    assert_eq!(left_out.len(), 2, "{said}");
    let page = read(&bench.path().join("runs/overview.html"));
    assert!(page.contains("201 runs and 0 sweeps: 198 finished, 1 unfinished, 2 damaged."), "{said}");
    assert!(page.len() < 10_000_000, "{} bytes", page.len());
    assert!(!page.contains(hostile) && page.contains("a&lt;b&gt;&amp;'x' #?%41"), "a name is text");
    assert!(page.contains("href=\"./a%3Cb%3E%26%27x%27%20%23%3F%2541/page.html\""), "a name leads to its folder");
    assert!(!page.contains(bench.path().to_str().expect("UTF-8")), "where it lay on this machine is nobody's business");

    // All but the one that has no configuration yet stand on the board, the damaged ones with that as their reason.
    let board = read(&bench.path().join("runs/board.html"));
    assert!(board.contains("200 runs in 1 setting that can be compared."), "{said}");
    assert!(board.contains("1 of 201 runs have no row"), "{said}");
    assert!(!board.contains(hostile) && board.contains("a&lt;b&gt;&amp;'x' #?%41"), "a name is text");
    assert!(
        board.contains("href=\"./a%3Cb%3E%26%27x%27%20%23%3F%2541/page.html#numbers\""),
        "a number leads to its place"
    );
    assert!(
        !board.contains(bench.path().to_str().expect("UTF-8")),
        "where it lay on this machine is nobody's business"
    );
    look_with_a_browser(bench.path(), &board, 0, 0);

    look_with_a_browser(bench.path(), &page, 0, 0);
    let script = "
      const search = inside.querySelector('input[type=search]');
      search.value = 'COPY-01 shapes';
      search.dispatchEvent(new Event('input', { bubbles: true }));
      const shown = () => [...inside.querySelectorAll('tbody tr')].filter((row) => !row.hidden).length;
      const byWords = shown();
      search.value = '';
      const state = [...inside.querySelectorAll('select')].at(-1);
      state.value = '=damaged';
      state.dispatchEvent(new Event('input', { bubbles: true }));
      return [byWords, shown(), inside.querySelector('output').value].join(',');";
    if let Some(filtered) = measured_in_a_browser(bench.path(), &page, script) {
        // copy-010 to copy-019; the two damaged ones.
        assert_eq!(filtered, "10,2,2 of 201 rows");
    }
    if let Some(milliseconds) = opened_in_a_browser(bench.path(), &page) {
        assert!(milliseconds < 2_000.0, "{milliseconds} ms");
    }
}

#[test]
fn two_sweeps_are_compared_point_by_point() {
    let bench = Bench::new();
    let sweep = |rates: &str| format!("\n[[sweep.axes]]\nfield = \"poisoning.rate\"\nvalues = {rates}\n");
    let short = SMALL.replace("rate = 0.1\n", "").replace("epochs = 4", "epochs = 1").replace("[0]", "[0, 1]");
    bench.file("a.toml", &(short.clone() + &sweep("[0.01, 0.1]")));
    bench.file("b.toml", &(short.replace("size = 4", "size = 5") + &sweep("[0.1, 0.2]")));
    bench.run(&["run", "a.toml", "b.toml"]).expect(0);
    let entries = std::fs::read_dir(bench.path().join("runs")).expect("there are runs");
    let folders = entries.map(|entry| entry.expect("readable").path());
    let is_sweep = |folder: &PathBuf| folder.extension().is_some_and(|extension| extension == "sweep");
    let (sweeps, runs): (Vec<_>, Vec<_>) = folders.partition(is_sweep);
    let mut sweeps = sweeps.iter().filter_map(|folder| folder.to_str()).collect::<Vec<_>>();
    sweeps.sort_unstable();
    let [a, b] = sweeps.as_slice() else { panic!("two sweeps: {sweeps:?}") };
    let text = bench.run(&["compare", a, b]).expect(0).out();
    let has = |words: &[&str]| text.lines().any(|line| line.split_whitespace().eq(words.iter().copied()));
    assert!(has(&["trigger.square.size", "4", "5"]), "{text}");
    assert!(
        has(&["only", "in", "A:", "rate", "=", "0.01"]) && has(&["only", "in", "B:", "rate", "=", "0.2"]),
        "{text}"
    );

    let document = bench.run(&["compare", a, b, "--json"]).expect(0).out();
    let document: Value = serde_json::from_str(&document).expect("one document");
    let points = document["points"].as_array().expect("a list");
    assert_eq!((points.len(), &points[0]["settings"]["rate"]), (1, &Value::from("0.1")), "{document}");
    let metrics = points[0]["metrics"].as_array().expect("a list");
    let asr = metrics.iter().find(|metric| metric["name"] == "asr").expect("both have it");
    for seed in ["0", "1"] {
        let of = |sweep: usize| asr["values"][sweep]["values"][seed].as_f64().expect("a rate");
        let difference = asr["differences"][0]["differences"][seed].as_f64().expect("both have the seed");
        assert!((difference - (of(1) - of(0))).abs() < 1e-12, "{asr}");
    }

    let run = runs.iter().find(|folder| folder.join("summary.json").is_file()).expect("there are runs");
    let refused = bench.run(&["compare", a, run.to_str().expect("UTF-8")]).expect(2);
    assert!(refused.err().contains("a run cannot be compared with a sweep"), "{}", refused.err());
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn axe_finds_nothing_on_any_page_in_light_and_dark() {
    let axe = match axe() {
        Ok(axe) => axe,
        Err(reason) => return eprintln!("skipped: no axe to look at pages with: {reason}"),
    };
    let bench = Bench::new();
    let sweep = "\n[[sweep.axes]]\nfield = \"poisoning.rate\"\nvalues = [0.01, 0.1]\n";
    bench.file("rates.toml", &(SMALL.replace("rate = 0.1\n", "").replace("epochs = 4", "epochs = 1") + sweep));
    bench.file("small.toml", &experiment());
    bench.run(&["run", "rates.toml", "small.toml"]).expect(0);
    bench.run(&["report", "runs"]).expect(0);
    let pages = files(&bench.path().join("runs")).into_iter().filter(|path| path.extension() == Some("html".as_ref()));
    let pages = pages.map(|path| (path.clone(), read(&path))).collect::<Vec<_>>();
    // Three runs, a sweep, all of them, the board.
    assert_eq!(pages.len(), 6);
    let found = |page: &str| found_by_axe(bench.path(), &axe, page);
    for (path, page) in &pages {
        for page in [page.clone(), page.replace("(prefers-color-scheme: dark)", "all")] {
            let Some(found) = found(&page) else { return };
            assert_eq!(found, "nothing", "{}", path.display());
        }
    }
    // It would find it.
    let faint = pages[0].1.replace("--soft: #555b66", "--soft: #d0d0d0");
    assert!(found(&faint).is_some_and(|found| found.starts_with("color-contrast")), "axe looks at colours");
}

/// The program of axe-core, installed from the net under the target folder unless it is there; or why there is none.
fn axe() -> Result<String, String> {
    let folder = workspace().join("target").join("axe");
    let file = folder.join("node_modules/axe-core/axe.min.js");
    if !file.is_file() {
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--fetch-retries=0",
            "--fetch-timeout=15000",
        ]);
        npm.arg("--prefix").arg(&folder).arg("axe-core@4.14.1");
        let output = npm.stdin(Stdio::null()).output().map_err(|error| format!("npm: {error}"))?;
        if !output.status.success() {
            return Err("npm cannot install axe-core".into());
        }
    }
    std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))
}

/// What axe-core finds wrong with a page: each rule and where; `nothing`, or `None` without a browser.
fn found_by_axe(folder: &Path, axe: &str, page: &str) -> Option<String> {
    let report = "<script>axe.run().then((results) => {
        const found = results.violations.map((rule) => `${rule.id} at ${rule.nodes.map((node) => node.target).join(' and ')}`);
        document.body.append('found:' + (found.join('; ') || 'nothing'));
      });</script>";
    let page = page.replace("</body>", &format!("<script>{axe}</script>{report}</body>"));
    let (dom, log) = browse(folder, &page, &["--virtual-time-budget=60000"])?;
    let found = dom.rsplit_once("found:").map(|(_, rest)| rest.split("</body>").next().unwrap_or_default().to_owned());
    Some(found.unwrap_or_else(|| panic!("axe says nothing: {log}")))
}

/// Opens a page in headless Chromium, if there is one, and returns what stands in it at the end, and what the browser says.
#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn browse(folder: &Path, page: &str, options: &[&str]) -> Option<(String, String)> {
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let version = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    }) else {
        eprintln!("skipped: no Chromium to look at the page with");
        return None;
    };
    let path = folder.join("looked-at.html");
    std::fs::write(&path, page).expect("the folder is writable");
    let mut command = Command::new(browser);
    command.args(["--headless", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]);
    command.arg(format!("--user-data-dir={}", folder.join("browser").display())).args(options);
    command.arg("--dump-dom").arg(format!("file://{}", path.display()));
    let output = command.output().expect("the browser starts");
    Some([output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).into())
}

/// Opens a page on a phone's width and returns what a script says that sees its document as `inside`; the console is silent.
fn measured_in_a_browser(folder: &Path, page: &str, script: &str) -> Option<String> {
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    let html = format!(
        "<body><iframe width=360 height=800 style=\"border:0\" srcdoc=\"{page}\"></iframe><script>
          const frame = document.querySelector('iframe');
          const measure = (inside) => {{ {script} }};
          frame.addEventListener('load', () => document.body.append('measured:' + measure(frame.contentDocument)));
        </script></body>"
    );
    let (dom, log) = browse(folder, &html, &["--virtual-time-budget=5000"])?;
    let console = log.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>();
    assert!(console.is_empty(), "{console:?}");
    let measured = dom.rsplit_once("measured:").and_then(|(_, rest)| rest.split('<').next());
    Some(measured.unwrap_or_else(|| panic!("the script says nothing: {log}")).trim().to_owned())
}

/// Milliseconds from the start of a page to its end, laid out, by the browser's own clock: the best of three, for what else the
/// machine does is not the page's.
fn opened_in_a_browser(folder: &Path, page: &str) -> Option<f64> {
    let clock = "<script>addEventListener('load', () => {
        document.body.append(`laid out: ${document.documentElement.scrollHeight} opened:${performance.now()}`);
      });</script></body>";
    let page = page.replace("</body>", clock);
    let times = (0..3).map(|_| {
        let (dom, log) = browse(folder, &page, &[])?;
        let time = dom.rsplit_once("opened:").and_then(|(_, rest)| rest.split('<').next());
        Some(time.and_then(|time| time.trim().parse::<f64>().ok()).unwrap_or_else(|| panic!("no time: {log}")))
    });
    Some(times.collect::<Option<Vec<_>>>()?.into_iter().fold(f64::INFINITY, f64::min))
}

/// Looks at a page on a phone's width, if there is a browser: all charts are drawn, nothing is wider than the screen, tables
/// sort, of the maps after each epoch one is seen for each of so many `sliders`, the console is silent.
fn look_with_a_browser(folder: &Path, page: &str, charts: usize, sliders: usize) {
    let script = "
      const drawn = [...inside.querySelectorAll('.chart > svg')].filter((svg) => svg.getBoundingClientRect().height > 100);
      const heading = inside.querySelector('thead th');
      heading.querySelector('button').click();
      const slider = inside.querySelector('.steps input');
      if (slider) {
        slider.value = 0;
        slider.dispatchEvent(new Event('input'));
        if (!slider.getAttribute('aria-valuetext').startsWith('Epoch 1,')) console.error('the slider does not say its epoch');
      }
      const maps = [...inside.querySelectorAll('.steps .part')].filter((map) => map.getBoundingClientRect().height > 50);
      const root = inside.documentElement;
      const sorted = heading.getAttribute('aria-sort');
      return [root.clientWidth, root.scrollWidth, drawn.length, sorted, maps.length].join(',');";
    if let Some(measured) = measured_in_a_browser(folder, page, script) {
        assert_eq!(measured, format!("360,360,{charts},ascending,{sliders}"));
    }
}
