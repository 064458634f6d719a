"""Take the pictures of the MLflow views for the documentation.

    pip install playwright                      # no browser download: Debian's own is used
    apt-get install chromium
    make ui                                     # in another terminal
    python docs/screenshots.py http://127.0.0.1:5000

writes docs/pictures/mlflow-{runs,charts,champion}.png. Not part of the project's dependencies or tests.
"""

from __future__ import annotations

import argparse
import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
VIEW = "viewStateShareKey=students&workflowType=machine_learning"
CLOSE_ASSISTANT = """
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
"""A chat panel covers a quarter of the window until a person closes it for the first time."""
WIDTH = 1600
HEIGHTS = {"runs": 720, "charts": 1180, "champion": 920}
"""Size of the window in pixels for each picture."""
TEXTS = {"runs": "matching runs", "charts": "Training curves", "champion": "Source Run"}
"""What each page shows once its data is there; it asks the server again and again, so it is never idle."""
SETTLE_MS = 4000


def main() -> None:
    """Read the command line and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the running user interface")
    parser.add_argument("--experiment", default="compress")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=list(CHROMIUM_ARGUMENTS))
        page = browser.new_page()
        page.add_init_script(CLOSE_ASSISTANT)
        for name, address in pages(arguments.url.rstrip("/"), arguments.experiment).items():
            page.set_viewport_size({"width": WIDTH, "height": HEIGHTS[name]})
            take(page, address, text=TEXTS[name], path=arguments.folder / f"mlflow-{name}.png")
        browser.close()


def pages(url: str, experiment: str) -> dict[str, str]:
    """Address of each picture's page."""
    number = ask(url, "experiments/get-by-name", experiment_name=experiment)["experiment"]["experiment_id"]
    champion = ask(url, "registered-models/alias", name=experiment, alias="champion")["model_version"]
    runs = f"{url}/#/experiments/{number}/runs?{VIEW}"
    version = f"{url}/#/models/{champion['name']}/versions/{champion['version']}?workflowType=machine_learning"
    return {"runs": runs, "charts": f"{runs}&compareRunsMode=CHART", "champion": version}


def ask(url: str, call: str, **parameters: str) -> dict[str, Any]:
    """One answer of the server's REST interface."""
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}/api/2.0/mlflow/{call}?{query}", timeout=30) as response:  # noqa: S310  the address is the caller's own server
        return json.load(response)


def take(page: Page, address: str, *, text: str, path: Path) -> None:
    """Open a page as a new visitor would, and save what is in the window."""
    page.goto("about:blank")  # addresses that differ behind the # alone would not load anew
    page.goto(address)
    page.get_by_text(text).first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    main()
