"""Takes the README's picture of the playground, on a machine with nothing else to do. Usage: picture.py URL FILE.png."""

import sys
import tempfile

from playground import Page, browser

FORM = "#class=sneaker&seed=7&guidance=1&budgets=fast+balanced+best+10ms&deadline=500"


def main(url, file):
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            page = Page(driver, url + FORM)
            page.until(page.is_open)
            assert page.draw() == ["done"] * 4, page.texts(".card")
            height = driver.execute_script("return document.documentElement.scrollHeight")
            screen = {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            driver.save_screenshot(file)
        finally:
            driver.quit()


main(*sys.argv[1:])
