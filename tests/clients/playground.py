"""The playground page in headless Chromium, as a visitor uses it.

Usage: playground.py URL [KEY]. With a key, the server is one that asks for it.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request

from pngs import png
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

ARGUMENTS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --window-size=1280,900""".split()
# Chromium reports every refusal of the server on the console, which the page cannot prevent.
REFUSAL = "/generate?budget=fast - Failed to load resource: the server responded with a status of 400 (Bad Request)"


def browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in [*ARGUMENTS, f"--user-data-dir={profile}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def ask(url, data=None):
    """A plain request, without the browser."""
    request = urllib.request.Request(url, data, {"content-type": "application/json"} if data else {})
    with urllib.request.urlopen(request) as response:
        return response.headers, response.read()


class Page:
    """The page's parts by what they are to a visitor."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        driver.get(url)

    def is_open(self):
        return self.one("#main").is_displayed()

    def until(self, holds):
        WebDriverWait(self.driver, 30, poll_frequency=0.05).until(lambda _: holds())

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        return [element.text for element in self.all(selector)]

    def write(self, field, text):
        element = self.one(field)
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(text)

    def choose(self, class_name):
        [label] = [label for label in self.all("#classes label") if label.text == class_name]
        label.click()

    def check(self, *budgets):
        for box in self.all("input[name=budget]"):
            wanted = (box.get_attribute("value") if box.get_attribute("id") != "use-deadline" else "deadline") in budgets
            if box.is_selected() != wanted:
                box.click()

    def draw(self):
        """Draws, and gives the state of each card when all is done."""
        self.one("#draw").click()
        return self.finished()

    def finished(self):
        self.until(lambda: self.one("#draw").text == "Draw" and self.all(".card"))
        return [card.get_attribute("data-state") for card in self.all(".card")]

    def natural_size(self, image):
        return self.driver.execute_script("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", image)

    def pixels(self, selector):
        """The red, green, blue and opacity of each pixel of a picture or a canvas, row by row."""
        values = self.driver.execute_script(
            """const shown = document.querySelector(arguments[0]);
            const canvas = document.createElement("canvas");
            canvas.width = shown.naturalWidth ?? shown.width;
            canvas.height = shown.naturalHeight ?? shown.height;
            const context = canvas.getContext("2d");
            context.drawImage(shown, 0, 0);
            return [...context.getImageData(0, 0, canvas.width, canvas.height).data];""",
            selector,
        )
        return [tuple(values[at : at + 4]) for at in range(0, len(values), 4)]

    def painted(self):
        """Of each pixel, whether it is painted to be drawn anew."""
        return [opacity > 0 for *_, opacity in self.pixels("#easel .film")]

    def strength(self):
        return float(self.one("#strength").get_attribute("value"))

    def start_from(self, path):
        self.driver.execute_script("document.getElementById('start').open = true")
        self.one("#image").send_keys(path)
        self.until(lambda: self.one("#started").is_displayed() or self.one("#image-problem").text)

    def film(self):
        """What is painted on, all of it on the screen, so that its middle is where the pointer is moved to."""
        film = self.one("#easel .film")
        self.driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", film)
        return film

    def file_of(self, link):
        """What a link that holds a file saves."""
        return base64.b64decode(self.one(link).get_attribute("href").split(",")[1])


def main(url, *key):
    headers, _ = ask(url)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy, policy
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            page = Page(driver, url)
            models = [model["id"] for model in json.loads(ask(f"{url}/v1/models")[1])["data"]] if not key else []
            if len(models) > 1:
                return change(page, models)
            prompts = json.loads(ask(f"{url}/subnets")[1])["prompts"] if not key else False
            unlock(page, *key) if key else describe(page) if prompts else visit(page)
            if not key:
                with tempfile.TemporaryDirectory() as folder:
                    resize(page, folder) if prompts else edit(page, folder)
        finally:
            driver.quit()
    print("the playground draws, compares, plots and explains")


def unlock(page, key):
    """Only the right key opens the page, and it then draws."""
    for text, says in [("wrong", "not accepted"), (key, "")]:
        page.until(lambda: page.one("#key").is_displayed())
        page.write("#key", text + Keys.ENTER)
        page.until(lambda: says in page.one("#trouble").text if says else page.is_open())
    page.check("fast")
    assert page.draw() == ["done"], page.texts(".card")


def change(page, models):
    """The form follows the model that is chosen, and so do address and shell."""
    page.until(page.is_open)
    for name in [*models, models[0], models[1]]:
        page.one(f"#which option[value='{name}']").click()
        about = json.loads(ask(f"{page.url}/subnets?model={name}")[1])
        page.until(lambda: page.one("#model strong").text == name)
        assert page.one("#prompt-field").is_displayed() == about["prompts"]
        assert page.one("#class-field").is_displayed() == bool(about["classes"])
        assert page.texts("#budgets code") == [about["budgets"][name]["plan"] for name in ("fast", "balanced", "best")]
        if about["prompts"]:
            page.write("#prompt", "a bicycle")
        page.check("fast")
        assert page.draw() == ["done"], page.texts(".card")
        assert page.natural_size(page.one(".card img")) == [about["image"]["width"], about["image"]["height"]]
        says = f'"model":"{name}"' in page.one("#shell").get_property("textContent")
        assert says == (name != models[0]), page.one("#shell").get_property("textContent")
    page.until(lambda: f"model={models[1]}" in page.driver.current_url)
    page.driver.refresh()
    page.until(page.is_open)
    assert page.one("#model strong").text == models[1] and page.one("#which").get_property("value") == models[1]
    print("the playground changes models")


def describe(page):
    """A model that draws texts is told what to draw, and in which size."""
    page.until(page.is_open)
    assert not page.one("#class-field").is_displayed() and page.one("#guidance").get_attribute("value") == "7.5"
    page.check("fast")
    page.one("#draw").click()
    assert "what the image is to show" in page.one("#prompt-problem").text and not page.all(".card")
    page.write("#prompt", 'a "red" bicycle')
    page.write("#negative", "blurry")
    page.write("#seed", "42")
    page.one("#size option[value='160x64']").click()
    assert page.draw() == ["done"], page.texts(".card")
    image = page.one(".card img")
    assert page.natural_size(image) == [160, 64], page.natural_size(image)
    assert image.get_attribute("alt").startswith('a "red" bicycle, seed 42, drawn with ')
    drawn = base64.b64decode(image.get_attribute("src").split(",")[1])
    body = {"prompt": 'a "red" bicycle', "negative_prompt": "blurry", "seed": 42, "guidance": 7.5, "width": 160, "height": 64}
    assert drawn == ask(f"{page.url}/generate?budget=fast", json.dumps(body).encode())[1]
    page.write("#guidance", "3")
    page.write("#prompt", "one two three " * 60)
    assert page.draw() == ["done"] and "the beginning of the text" in page.one(".card").text, page.texts(".card")
    assert base64.b64decode(page.one(".card img").get_attribute("src").split(",")[1]) != drawn
    page.driver.refresh()
    page.until(page.is_open)
    assert page.one("#negative").get_attribute("value") == "blurry"
    assert page.one("#size").get_attribute("value") == "160x64" and page.one("#guidance").get_attribute("value") == "3"
    said = [entry["message"] for entry in page.driver.get_log("browser")]
    assert not said, said


def visit(page):
    page.until(page.is_open)
    subnets = json.loads(ask(f"{page.url}/subnets")[1])
    plans = {name: budget["plan"] for name, budget in subnets["budgets"].items()}
    assert page.texts("#classes label") == ["top", "bottom", "any"], page.texts("#classes label")
    assert page.texts("#budgets code") == [plans[name] for name in ("fast", "balanced", "best")]

    # Two budgets of one seed, side by side, are what the API draws.
    page.choose("bottom")
    page.write("#seed", "42")
    page.check("fast", "best")
    assert page.draw() == ["done", "done"], page.texts(".card")
    assert page.texts(".card h3") == ["fast", "best"]
    assert page.texts(".card .plan") == [plans["fast"], plans["best"]], page.texts(".card .plan")
    for card, budget in zip(page.all(".card"), ("fast", "best")):
        image = card.find_element(By.TAG_NAME, "img")
        assert page.natural_size(image) == [8, 8] and image.size["width"] > 100, image.size
        assert image.get_attribute("alt") == f"bottom, seed 42, drawn with {plans[budget]}"
        drawn = base64.b64decode(image.get_attribute("src").split(",")[1])
        assert drawn == ask(f"{page.url}/generate?budget={budget}", b'{"class":"bottom","seed":42}')[1]
        for part in ("ms", "quality", "queue", "denoise", "encode"):
            assert part in card.text, card.text
    assert [ring.get_attribute("data-plan") for ring in page.all(".served circle")] == [plans["fast"], plans["best"]]

    # The plot says what lies under the pointer, and draws by keyboard what is chosen on it.
    assert len(page.all(".dot")) == len(subnets["frontier"])
    ActionChains(page.driver).move_to_element(page.one(f".dot[data-plan='{plans['balanced']}'] .point")).perform()
    assert plans["balanced"] in page.one("#readout").text, page.one("#readout").text
    page.driver.execute_script("document.querySelector('.dot[tabindex=\"0\"]').focus()")
    ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT, Keys.ENTER).perform()
    assert page.finished() == ["done"] and page.texts(".card .plan") == [subnets["frontier"][1]["plan"]]

    # A deadline of its own, moved by keyboard; a reload keeps the form.
    page.check("deadline")
    page.one("#deadline").send_keys(Keys.END)
    assert page.one("#deadline-plan").text == plans["best"]
    assert page.draw() == ["done"] and page.texts(".card h3")[0].startswith("within "), page.texts(".card")
    page.driver.refresh()
    page.until(page.is_open)
    assert page.one("#seed").get_attribute("value") == "42" and page.one("#use-deadline").is_selected()

    # What cannot be is said in words: by the page where it knows, by the server where it alone does.
    page.check("fast")
    for field, text, says in [("seed", "many", "whole number"), ("guidance", "21", "0 to 20")]:
        page.write(f"#{field}", text)
        page.one("#draw").click()
        assert says in page.one(f"#{field}-problem").text and not page.all(".card"), page.one(f"#{field}-problem").text
        page.write(f"#{field}", "1")
    page.check()
    page.one("#draw").click()
    assert "at least one" in page.one("#budget-problem").text and not page.all(".card")
    page.check("fast")
    page.driver.execute_script("document.querySelector('input[name=class]:checked').value = 'sideways'")
    assert page.draw() == ["failed"]
    assert page.texts(".card .problem") == [
        "Class `sideways` is unknown: accepted are top, bottom, or their index from 0."
    ], page.texts(".card .problem")

    said = [entry["message"] for entry in page.driver.get_log("browser")]
    assert said == [f"{page.url}{REFUSAL}"], said

    # On a phone nothing is wider than the screen.
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def edit(page, folder):
    """An image is started from, as a whole and in the painted part alone, and then no more."""
    page.driver.get("about:blank")
    page.driver.get(page.url)
    page.until(page.is_open)
    page.choose("top")
    page.write("#seed", "7")
    page.check("fast")
    plan = page.texts("#budgets code")[0]
    assert page.draw() == ["done"] and page.texts(".card .plan") == [plan]
    from_noise = page.pixels(".card img")

    # A picture of another size is cut and scaled to the model's: twice as wide, and white beside the middle.
    wide = os.path.join(folder, "wide.png")
    with open(wide, "wb") as file:
        file.write(png([[255] * 10 + [16 + 4 * x + 2 * y for x in range(20)] + [255] * 10 for y in range(20)]))
    page.start_from(wide)
    assert page.one("#start-name").text == "wide.png" and page.strength() == 0.8
    start = page.pixels("#easel .picture")
    assert len(start) == 64 and all(r == g == b and r < 160 and opacity == 255 for r, g, b, opacity in start), start
    assert all(start[at][0] < start[at + 1][0] for at in range(63) if at % 8 < 7), start
    assert page.draw() == ["done"] and page.texts(".card .plan") == [f"{plan}~strength=0.8"], page.texts(".card .plan")
    assert len(page.all(".glyph .left-out")) == 1 and len(page.all(".glyph :not(.left-out).done")) == 3
    assert page.pixels(".card img") not in (from_noise, start)
    assert page.one("#subject").text == "top, seed 7, from wide.png"

    # What is painted, by pointer and by keyboard, is drawn anew, and nothing else.
    film = page.film()
    side = film.size["width"] / 8
    stroke = ActionChains(page.driver).move_to_element_with_offset(film, round(-3 * side), round(-2.5 * side))
    stroke.click_and_hold().move_by_offset(round(4 * side), 0).release().perform()
    by_pointer = page.painted()
    assert 8 <= sum(by_pointer) <= 15 and not any(by_pointer[24:]), by_pointer
    assert page.strength() == 1
    page.driver.execute_script("arguments[0].focus()", film)
    ActionChains(page.driver).send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.SPACE).perform()
    painted = page.painted()
    assert sum(by_pointer) < sum(painted) < 32 and any(painted[24:]), painted
    assert page.draw() == ["done"] and page.texts(".card .plan") == [plan], page.texts(".card .plan")
    drawn = page.pixels(".card img")
    assert all(drawn[at] == start[at] for at in range(64) if not painted[at]), (drawn, start)
    assert sum(drawn[at] != start[at] for at in range(64) if painted[at]) > sum(painted) / 2, (drawn, start)

    # A strength of one's own stays. The command draws the same from the files that it reads.
    page.one("#strength").send_keys(Keys.ARROW_LEFT * 8)
    assert page.strength() == 0.6 and page.one("#strength-text").text == "0.6"
    assert page.one("#budget-hint").is_displayed()
    assert page.draw() == ["done"] and page.texts(".card .plan") == [f"{plan}~strength=0.6"], page.texts(".card .plan")
    drawn = page.pixels(".card img")
    assert all(drawn[at] == start[at] for at in range(64) if not painted[at]), (drawn, start)
    for name in ("image", "mask"):
        with open(os.path.join(folder, f"{name}.png"), "wb") as file:
            file.write(page.file_of(f"#shell-{name}"))
    command = page.one("#shell").get_property("textContent")
    assert '"mask":"$(base64 <mask.png)"' in command, command
    subprocess.run(["sh", "-c", command], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    with open(os.path.join(folder, "fast.png"), "rb") as file:
        assert file.read() == base64.b64decode(page.one(".card img").get_attribute("src").split(",")[1])

    # Shift wipes, and a button all.
    page.driver.execute_script("arguments[0].focus()", film)
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.SPACE).key_up(Keys.SHIFT).perform()
    assert page.painted() == by_pointer
    page.one("#clear-mask").click()
    assert not any(page.painted()) and page.strength() == 0.6
    assert '"mask"' not in page.one("#shell").get_property("textContent")

    # A result is started from as it is.
    page.one(".card .small").click()
    page.until(lambda: page.one("#start-name").text == "top, seed 7, fast")
    assert page.pixels("#easel .picture") == drawn and page.strength() == 0.8
    assert page.one("#image").get_attribute("value") == ""

    # What the server alone refuses of it is said beside it.
    page.driver.execute_script("document.getElementById('strength').min = 0; document.getElementById('strength').value = 0")
    assert page.draw() == ["failed"]
    assert "`strength` is 0" in page.one("#image-problem").text, page.one("#image-problem").text

    # A file that is no picture has its sentence, and starts nothing.
    broken = os.path.join(folder, "broken.png")
    with open(broken, "wb") as file:
        file.write(png([[0]])[:40])
    page.start_from(broken)
    page.until(lambda: page.one("#image-problem").text == "This browser cannot read broken.png as an image.")
    assert not page.one("#started").is_displayed() and page.one("#start-name").text == ""
    page.start_from(wide)
    page.until(lambda: page.one("#started").is_displayed())
    assert not page.one("#image-problem").is_displayed()

    # Without it all is as before.
    page.one("#remove").click()
    assert not page.one("#started").is_displayed() and page.one("#image").get_attribute("value") == ""
    assert not page.one("#budget-hint").is_displayed()
    assert re.search(r"""-d '{"class":"top","seed":7}' -o fast.png$""", page.one("#shell").get_property("textContent"))
    assert page.draw() == ["done"] and page.texts(".card .plan") == [plan]
    assert page.pixels(".card img") == from_noise
    said = [entry["message"] for entry in page.driver.get_log("browser")]
    assert said == [f"{page.url}{REFUSAL}"], said


def resize(page, folder):
    """Picture and paint follow the size that is chosen."""
    page.write("#prompt", "a $5 `bicycle`")
    page.one("#size option[value='128x128']").click()
    page.check("fast")
    tall = os.path.join(folder, "tall.png")
    with open(tall, "wb") as file:
        file.write(png([[x + y for x in range(50)] for y in range(100)]))
    page.start_from(tall)
    ActionChains(page.driver).move_to_element(page.film()).click().perform()
    for width, height in ((128, 128), (160, 64)):
        page.one(f"#size option[value='{width}x{height}']").click()
        start, painted = page.pixels("#easel .picture"), page.painted()
        assert len(start) == len(painted) == width * height
        assert painted[(height // 2) * width + width // 2] and not painted[0]
        assert page.draw() == ["done"], page.texts(".card")
        drawn = page.pixels(".card img")
        assert all(drawn[at] == start[at] for at in range(width * height) if not painted[at])
        assert any(drawn[at] != start[at] for at in range(width * height) if painted[at])
    assert r'"prompt":"a \$5 \`bicycle\`"' in page.one("#shell").get_property("textContent")
    said = [entry["message"] for entry in page.driver.get_log("browser")]
    assert not said, said


if __name__ == "__main__":
    main(*sys.argv[1:])
