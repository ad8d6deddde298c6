#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The script of the chart's init container: waits for whole files, says what for and how to upload it, gives up on time."""

import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "chart/files/wait-for-data.sh"
COPY = ("kubectl cp --namespace team-a", "run-fettle-data-0", "--container data")
LONG_AGO = 1_000_000_000


class WaitForData(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name) / "my data.json"

    def tearDown(self):
        self.folder.cleanup()

    def start(self, *paths, timeout=0, quiet=2):
        command = ["sh", "-c", SCRIPT.read_text(encoding="utf-8"), "wait-for-data", str(timeout), str(quiet), *COPY]
        command += [str(path) for path in paths or [self.path]]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, process, code=0):
        output = process.communicate(timeout=30)[0]
        self.assertEqual(process.returncode, code, output)
        return output

    def test_a_file_of_long_ago_counts_at_once(self):
        self.path.write_text("x", encoding="utf-8")
        os.utime(self.path, (LONG_AGO, LONG_AGO))
        start = time.monotonic()
        self.finish(self.start(quiet=100))
        self.assertLess(time.monotonic() - start, 5)

    def test_says_what_it_waits_for_and_goes_on(self):
        process = self.start()
        time.sleep(1.5)
        self.assertIsNone(process.poll())
        self.path.write_text("x", encoding="utf-8")
        output = self.finish(process)
        self.assertIn(f"waiting for data: {self.path} is not there yet; upload it with\n", output)
        self.assertIn(
            f"  kubectl cp --namespace team-a my data.json run-fettle-data-0:{self.path} --container data\n", output
        )
        self.assertEqual(output.count("waiting for data"), 1)  # every 15 s
        self.assertIn("all data is there", output)

    def test_a_file_that_grows_is_not_whole(self):
        process = self.start()
        grown = threading.Event()

        def grow():
            with self.path.open("w", encoding="utf-8") as file:
                for _ in range(8):
                    file.write("x")
                    file.flush()
                    time.sleep(0.5)
            grown.set()

        thread = threading.Thread(target=grow)
        thread.start()
        self.finish(process)
        self.assertTrue(grown.is_set())
        thread.join()

    def test_a_clock_that_is_ahead_does_not_matter(self):
        self.path.write_text("x", encoding="utf-8")
        os.utime(self.path, (time.time() + 1000, time.time() + 1000))
        self.finish(self.start())

    def test_an_upload_that_goes_on_is_waited_for(self):
        part = self.path.with_name(self.path.name + ".part")
        for path in (self.path, part):
            path.write_text("x", encoding="utf-8")
            os.utime(path, (LONG_AGO, LONG_AGO))
        process = self.start()
        time.sleep(3)
        self.assertIsNone(process.poll())
        part.unlink()
        self.assertIn("is still being uploaded", self.finish(process))

    def test_a_folder_is_waited_for_whole(self):
        inner = pathlib.Path(self.folder.name) / "model/sub"
        inner.mkdir(parents=True)
        (inner / "weights").write_text("x", encoding="utf-8")
        (inner / "more.part").write_text("x", encoding="utf-8")
        process = self.start(inner.parent)
        time.sleep(3)
        self.assertIsNone(process.poll())
        (inner / "more.part").rename(inner / "more")
        self.finish(process)

    def test_an_empty_file_is_no_data(self):
        self.path.touch()
        os.utime(self.path, (LONG_AGO, LONG_AGO))
        self.assertIn("is empty", self.finish(self.start(timeout=2), code=66))

    def test_gives_up_naming_the_one_that_is_missing(self):
        self.path.write_text("x", encoding="utf-8")
        os.utime(self.path, (LONG_AGO, LONG_AGO))
        missing = self.path.with_name("other")
        output = self.finish(self.start(self.path, missing, timeout=2), code=66)
        self.assertIn(f"error: {missing} is not there yet after 2 s", output.splitlines()[-1])

    def test_makes_the_folder_that_kubectl_cp_needs(self):
        inner = pathlib.Path(self.folder.name) / "a/b/data.json"
        self.finish(self.start(inner, timeout=1), code=66)
        self.assertTrue(inner.parent.is_dir())
        self.assertFalse(inner.exists())

    def test_ends_when_told_to(self):
        process = self.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        self.finish(process, code=75)


if __name__ == "__main__":
    unittest.main()
