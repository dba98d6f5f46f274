"""The page in a real browser: headless Chromium, one session for all tests."""

import csv
import io
import json

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from moesim.page.write import write_report
from moesim.report.embedded import figure_page
from moesim.report.tables import unescaped

pytestmark = pytest.mark.full
KINDS = ("layers", "serving", "training")
HOSTILE = ("=1+2", "-2+3", "@sum", "<b>bold</b>", 'a "quoted", text', "</script>", "🙂", "\x1b[31m")
#: seconds in which anything happens, also on a busy machine
_PATIENCE_S = 60
#: downloads that are looked for in the folder
_STORED = 8


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads):
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    allowed = {"behavior": "allow", "downloadPath": str(downloads)}
    found.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pages(folders):
    found = {}
    for kind, folder in folders.items():
        write_report(folder, out=folder / "moved" / "page.html")
        found[kind] = folder / "moved" / "page.html"
    return found


@pytest.fixture
def show(driver):
    """Open a page at a width and in a theme, and wait until all is drawn."""

    def shown(path, *, width=1440, theme="light"):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get("about:blank")
        driver.get(path.as_uri())
        driver.execute_script("try { localStorage.clear() } catch {}")
        drawn(driver)

    yield shown
    assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []


def wait(driver, true):
    return WebDriverWait(driver, _PATIENCE_S, poll_frequency=0.05).until(true)


def drawn(driver):
    wait(
        driver, lambda d: d.execute_script("return document.documentElement.dataset.drawn") == "yes"
    )


def count_of(driver):
    return driver.find_element(By.ID, "count").text


def points(driver, key="front"):
    script = (
        "return document.querySelector(`[data-chart='${arguments[0]}']`).data"
        ".map((trace) => [trace.name, trace.x.length])"
    )
    return dict(driver.execute_script(script, key))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (390, "dark")])
def test_every_plot_is_drawn_and_nothing_overflows(driver, show, pages, kind, width, theme):
    show(pages[kind], width=width, theme=theme)
    page = driver.execute_script("""
      const plots = [...document.querySelectorAll(".plot")];
      const root = document.documentElement;
      return {
        width: root.scrollWidth, inner: innerWidth, theme: root.dataset.theme,
        plots: plots.length,
        empty: plots.filter((plot) => !plot.querySelector("svg .plot, svg .cartesianlayer .xy"))
          .map((plot) => plot.dataset.chart),
        tall: plots.every((plot) => plot.getBoundingClientRect().height > 100),
        unnamed: [...document.querySelectorAll("button, select, input, [role]")].filter((one) =>
          !(one.textContent.trim() || one.getAttribute("aria-label") || one.closest("label")))
          .length,
        headless: [...document.querySelectorAll("table")].filter((table) =>
          !table.caption || table.querySelectorAll("th[scope=col]").length === 0
          || table.querySelectorAll("tbody th[scope=row]").length !== table.tBodies[0].rows.length)
          .length,
        loaded: performance.getEntriesByType("resource").map((one) => one.name)
          .filter((name) => !name.startsWith("data:")),
      };
    """)
    assert page["width"] <= page["inner"] == width
    assert page["theme"] == theme
    assert page["plots"] >= 5
    assert page["empty"] == []
    assert page["tall"]
    assert page["unnamed"] == page["headless"] == 0
    assert page["loaded"] == []


def test_dominated_trials_and_filters(driver, show, pages):
    show(pages["layers"])
    before = points(driver)
    assert before["dominated trials"] > 0
    driver.find_element(By.ID, "dominated").click()
    drawn(driver)
    after = points(driver)
    assert after["dominated trials"] == 0
    assert after["Pareto front"] == before["Pareto front"]
    driver.find_element(By.ID, "dominated").click()
    drawn(driver)
    everything = count_of(driver)
    rows = len(driver.find_elements(By.CSS_SELECTOR, "#front-table tbody tr"))
    driver.find_element(By.CSS_SELECTOR, "#filters summary").click()
    Select(driver.find_element(By.CSS_SELECTOR, "[data-column=num_experts]")).select_by_value("8")
    drawn(driver)
    assert count_of(driver) != everything
    assert sum(points(driver).values()) < sum(before.values())
    assert len(driver.find_elements(By.CSS_SELECTOR, "#front-table tbody tr")) < rows
    assert "(1 set)" in driver.find_element(By.CSS_SELECTOR, "#filters summary").text
    driver.find_element(By.ID, "clear").click()
    drawn(driver)
    assert count_of(driver) == everything
    assert points(driver) == before


def test_tables_sort_by_keyboard(driver, show, pages):
    show(pages["layers"])
    heads = driver.find_elements(By.CSS_SELECTOR, "#front-table thead th")
    place = next(i for i, head in enumerate(heads) if head.text.startswith("loss"))

    def column():
        script = (
            "return [...document.querySelectorAll('#front-table tbody tr')]"
            ".map((row) => parseFloat(row.cells[arguments[0]].firstChild.textContent))"
        )
        return driver.execute_script(script, place)

    button = heads[place].find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert heads[place].get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    button.send_keys(Keys.ENTER)
    assert heads[place].get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)
    outline = driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", button)
    assert outline != "none"


def test_two_trials_are_compared(driver, show, pages, folders):
    show(pages["layers"])
    one, other = (Select(driver.find_element(By.ID, name)) for name in ("one", "other"))
    trials = list(csv.DictReader((folders["layers"] / "trials.csv").open()))
    wait(driver, lambda _: len(other.options) == len(trials))
    one.select_by_value("3")
    other.select_by_value("5")
    rows = {
        cells[0]: cells[1:]
        for cells in (
            [cell.text for cell in row.find_elements(By.XPATH, "./*")]
            for row in driver.find_elements(By.CSS_SELECTOR, "#difference tbody tr")
        )
    }
    assert rows["trial"][:2] == ["3", "5"]
    shown = {"experts": "num_experts", "top-k": "top_k", "precision": "precision"}
    for label, column in shown.items():
        a, b = trials[3][column], trials[5][column]
        assert (label in rows) == (a != b)
        if a != b:
            assert [cell.replace(",", "") for cell in rows[label][:2]] == [a, b]
    fewer = len(rows)
    driver.find_element(By.ID, "equal").click()
    assert len(driver.find_elements(By.CSS_SELECTOR, "#difference tbody tr")) > fewer


def test_the_theme_switch_redraws(driver, show, pages):
    show(pages["training"])

    def paper():
        return driver.execute_script(
            "return [getComputedStyle(document.body).backgroundColor,"
            " document.querySelector('.js-plotly-plot').layout.paper_bgcolor]"
        )

    light = paper()
    driver.find_element(By.ID, "theme").send_keys(Keys.SPACE)
    drawn(driver)
    dark = paper()
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    assert driver.find_element(By.ID, "theme").text == "Light theme"


def test_downloads_hold_the_data(driver, show, pages, downloads, folders, make_checks, tmp_path):
    """Texts in them are no formulas, and every chart and table has one."""
    folder = folders["layers"]
    make_checks(folder, *({"candidate": text, "detail": text} for text in HOSTILE))
    page = tmp_path / "page.html"
    try:
        write_report(folder, out=page)
    finally:
        (folder / "check.csv").unlink()
    show(page)
    assert driver.execute_script("return window.alerted") is None
    charts = driver.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map((one) => one.dataset.chart)"
    )
    buttons = {
        button.get_attribute("data-csv"): button
        for button in driver.find_elements(By.CSS_SELECTOR, "[data-csv]")
    }
    assert set(charts) < set(buttons)
    # Chromium stores ten files of a page; of the others the content is read where it is made
    driver.execute_script(
        "const make = URL.createObjectURL; window.made = [];"
        "URL.createObjectURL = (blob) => { window.made.push(blob); return make(blob); };"
    )
    for button in buttons.values():
        button.send_keys(Keys.ENTER)
    texts = driver.execute_async_script(
        "const done = arguments[0]; Promise.all(window.made.map((one) => one.text())).then(done);"
    )
    made = dict(zip(buttons, texts, strict=True))
    stored = [f"{name}.csv" for name in list(buttons)[:_STORED]]
    wait(driver, lambda _: {path.name for path in downloads.iterdir()}.issuperset(stored))
    for name in stored:
        assert (downloads / name).read_bytes() == made[name.removesuffix(".csv")].encode()
    tables = {name: list(csv.reader(io.StringIO(text, newline=""))) for name, text in made.items()}
    for name, rows in tables.items():
        assert len(rows) > 1, name
        assert {len(row) for row in rows} == {len(rows[0])}, name
    trials = list(csv.DictReader((folder / "trials.csv").open()))
    head, *rows = tables["trials"]
    assert len(rows) == len(trials)
    for row, trial in zip(rows, trials, strict=True):
        found = dict(zip(head, row, strict=True))
        assert float(found["number"]) == float(trial["number"])
        if trial["loss"]:
            assert float(found["loss"]) == float(trial["loss"])
    for row in tables["checks"][1:]:
        assert not row[0].startswith(("=", "+", "-", "@"))
    shown = [unescaped(row[0]) for row in tables["checks"][1:]]
    assert shown == [text.replace("\x1b", "\\x1b") for text in HOSTILE]


def test_figures_of_other_studies_are_drawn_when_moved(driver, show, tmp_path):
    import plotly.graph_objects as go

    page = tmp_path / "elsewhere.html"
    page.write_text(figure_page(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), "A figure"))
    driver.get(page.as_uri())
    wait(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "#figure svg .scatterlayer path"))
    assert driver.title == "A figure"
    assert json.dumps(driver.get_log("browser")).count("SEVERE") == 0
