"""A headless Chromium, driven through a pipe with the DevTools protocol."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
TIMEOUT = 120


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a Chromium with a fresh profile.

    Attributes:
        errors: Messages of the console that are errors or warnings, and uncaught exceptions.
        requests: URLs that the page requested.
    """

    def __init__(self, executable: str, profile: Path) -> None:
        to_browser, self._commands = os.pipe()
        self._answers, from_browser = os.pipe()
        flags = [
            '--headless=new',
            '--no-sandbox',  # containers
            '--disable-gpu',
            '--disable-dev-shm-usage',
            '--remote-debugging-pipe',
            '--no-first-run',
            '--disable-background-networking',
            f'--user-data-dir={profile}',
        ]
        # The browser reads commands from descriptor 3 and writes answers to 4.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ['bash', '-c', command, executable, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._ids = itertools.count(1)
        self._buffer = b''
        self._loaded = False
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._session: str | None = None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        session = self.call('Target.attachToTarget', targetId=target, flatten=True)
        self._session = session['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command; return its result."""
        number = next(self._ids)
        message: dict[str, Any] = dict(id=number, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._receive()
            if answer.get('id') == number:
                if 'error' in answer:
                    raise RuntimeError(f'{method}: {answer["error"]}')
                return answer['result']

    def open(self, path: Path, width: int = 1280, height: int = 900, phone: bool = False) -> None:
        """Open a file and wait until it is loaded."""
        self.resize(width, height, phone)
        self.errors, self.requests, self._loaded = [], [], False
        self.call('Page.navigate', url=path.resolve().as_uri())
        while not self._loaded:
            self._receive()

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip

    def theme(self, name: str) -> None:
        """Prefer ``'light'`` or ``'dark'``."""
        feature = dict(name='prefers-color-scheme', value=name)
        self.call('Emulation.setEmulatedMedia', features=[feature])

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited if it is a promise."""
        result = self.call(
            'Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True
        )
        if 'exceptionDetails' in result:
            raise RuntimeError(result['exceptionDetails'])
        return result['result'].get('value')

    def mouse(self, kind: str, x: float, y: float, **params: Any) -> None:
        """``mouseMoved``, ``mousePressed`` or ``mouseReleased`` at a point of the window."""
        self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, **params)

    def click(self, x: float, y: float) -> None:
        self.mouse('mouseMoved', x, y)
        for kind in ('mousePressed', 'mouseReleased'):
            self.mouse(kind, x, y, button='left', clickCount=1)

    def key(self, key: str) -> None:
        text = dict(text=key) if len(key) == 1 else {}
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, **text)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        found = self.call('Page.captureScreenshot', captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found['data']))

    def close(self) -> None:
        os.close(self._commands)  # ends the browser
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT
        while b'\0' not in self._buffer:
            if not select.select([self._answers], [], [], end - time.monotonic())[0]:
                raise TimeoutError(f'no answer of the browser in {TIMEOUT} s')
            data = os.read(self._answers, 2**20)
            if not data:
                raise RuntimeError('the browser ended')
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b'\0')
        message = json.loads(text)
        method, params = message.get('method'), message.get('params', {})
        if method == 'Page.loadEventFired':
            self._loaded = True
        elif method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        elif method == 'Runtime.exceptionThrown':
            self.errors.append(json.dumps(params['exceptionDetails'])[:500])
        elif method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning'):
            self.errors.append(json.dumps(params['args'])[:500])
        elif method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.errors.append(params['entry']['text'])
        return message
