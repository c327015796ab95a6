"""Pages in the system's headless Chromium, and the requests that they make.

Debian: `apt-get install chromium chromium-driver`. Without them the tests are skipped, and fail in
CI. No browser is ever downloaded.

    with browser(tmp_path) as driver:
        driver.get(path.as_uri())
        assert requests(driver) == [path.as_uri()]
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--hide-scrollbars',
)
_INSIDE = ('data:', 'blob:', 'about:', 'chrome:')  # schemes that need no request


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 900) -> Iterator:
    """Starts Chromium with a new, empty profile.

    Args:
      folder: an empty folder for the profile.
      width: the width of the window, pixels.
      height: the height of the window, pixels.

    Yields:
      A `selenium.webdriver.Chrome`.
    """
    chromium, driver_path = shutil.which('chromium'), shutil.which('chromedriver')
    if chromium is None or driver_path is None:
        reason = 'needs chromium and chromium-driver (Debian)'
        if os.environ.get('CI'):
            pytest.fail(reason)
        pytest.skip(reason)
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *FLAGS,
        f'--user-data-dir={folder / "profile"}',
        f'--window-size={width},{height}',
    ):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    try:
        driver.set_window_size(width, height)
        yield driver
    finally:
        driver.quit()


def requests(driver) -> list[str]:
    """Returns the URLs that were requested since the last call."""
    events = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
    urls = [
        event['params']['request']['url']
        for event in events
        if event['method'] == 'Network.requestWillBeSent'
    ]
    return [url for url in urls if not url.startswith(_INSIDE)]


def complaints(driver) -> list[str]:
    """Returns the messages of the page's console since the last call."""
    return [entry['message'] for entry in driver.get_log('browser')]
