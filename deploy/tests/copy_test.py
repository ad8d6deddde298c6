#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""deploy/copy.sh against a stand-in of `kubectl exec` that runs the pod's commands here, and can cut or spoil the data."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "copy.sh"
# CUT: bytes after which a connection that carries a file ends. SPOIL: a byte of the file is changed on the way.
# LIE: a line that the pod adds to what it says of its files.
KUBECTL = """#!/usr/bin/env bash
echo "$*" >>"$FOLDER/calls"
while [[ $1 != -- ]]; do shift; done; shift
case "$*" in
  *'walk()'*) "$@"; [[ -z ${LIE:-} ]] || echo "$LIE"; exit ;;
  *'cat >>'*) carries=in ;;
  *'tail -c +'*) carries=out ;;
  *) exec "$@" ;;
esac
spoil() { if [[ -n ${SPOIL:-} ]]; then tr a b; else cat; fi; }
if [[ -n ${CUT:-} ]]; then
  if [[ $carries == in ]]; then head -c "$CUT" | "$@"; else "$@" | head -c "$CUT"; fi
  exit 1
fi
if [[ $carries == in ]]; then spoil | "$@"; else "$@" | spoil; fi
"""
SIZE = 3_000_000


class Copy(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.temporary.name)
        kubectl = self.folder / "kubectl"
        kubectl.write_text(KUBECTL, encoding="utf-8")
        kubectl.chmod(0o755)
        self.here, self.there = self.folder / "here", self.folder / "there"
        self.data = os.urandom(SIZE - 1) + b"a"

    def tearDown(self):
        self.temporary.cleanup()

    def write(self, root):
        (root / "a b/.hidden").mkdir(parents=True)
        (root / "a b/big file").write_bytes(self.data)
        (root / "a b/.hidden/ü'\"$x").write_text("aa", encoding="utf-8")
        (root / "empty").touch()

    def copy(self, direction, here=None, there=None, code=0, **environment):
        environment = {**os.environ, "KUBECTL": str(self.folder / "kubectl"), "FOLDER": str(self.folder), **environment}
        command = [str(SCRIPT), direction, "--namespace", "team-a", "--pod", "data-0", "--container", "data"]
        printed = subprocess.run(
            [*command, str(here or self.here), str(there or self.there)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.assertEqual(printed.returncode, code, printed.stdout)
        return printed.stdout

    def files(self, root):
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def roots(self, direction):
        return (self.here, self.there) if direction == "upload" else (self.there, self.here)

    def test_a_folder_both_ways_and_again(self):
        for direction in ("upload", "download"):
            with self.subTest(direction):
                source, target = self.roots(direction)
                if not source.exists():
                    self.write(source)
                self.assertIn("3 files, 3 sent, all hashes are equal", self.copy(direction))
                self.assertEqual(self.files(target), self.files(source))
                self.assertIn("3 files, 0 sent", self.copy(direction))
                (target / "empty").write_text("not", encoding="utf-8")
                self.assertIn("3 files, 1 sent", self.copy(direction))
                self.assertEqual(self.files(target), self.files(source))
                shutil.rmtree(source)  # for the way back to make again

    def test_a_cut_copy_goes_on_where_it_was(self):
        for direction in ("upload", "download"):
            with self.subTest(direction):
                source, target = self.roots(direction)
                source.mkdir(exist_ok=True)
                (source / direction).write_bytes(self.data)
                output = self.copy(direction, code=69, CUT="1000000")
                self.assertIn("run the same command again: it goes on from there", output)
                self.assertFalse((target / direction).exists())
                self.assertEqual((target / f"{direction}.part").stat().st_size, 1_000_000)
                self.assertIn(f"{SIZE} bytes, 1000000 of them are", self.copy(direction, CUT="500000", code=69))
                self.assertIn(f"{SIZE} bytes, 1500000 of them are", self.copy(direction))
                self.assertEqual((target / direction).read_bytes(), self.data)
                self.assertFalse((target / f"{direction}.part").exists())

    def test_a_part_of_another_file_is_not_gone_on_with(self):
        for direction in ("upload", "download"):
            with self.subTest(direction):
                source, target = self.roots(direction)
                source.mkdir(exist_ok=True)
                target.mkdir(exist_ok=True)
                (source / direction).write_bytes(self.data)
                (target / f"{direction}.part").write_bytes(b"\0" * 1000)
                self.assertNotIn("of them are", self.copy(direction))
                self.assertEqual((target / direction).read_bytes(), self.data)

    def test_a_spoilt_copy_is_found(self):
        for direction in ("upload", "download"):
            with self.subTest(direction):
                source, target = self.roots(direction)
                source.mkdir(exist_ok=True)
                (source / direction).write_bytes(self.data)
                output = self.copy(direction, code=65, SPOIL="1")
                self.assertIn("its hash is", output)
                self.assertFalse((target / direction).exists())
                self.copy(direction)
                self.assertEqual((target / direction).read_bytes(), self.data)

    def test_a_single_file(self):
        self.here.write_bytes(self.data)
        self.copy("upload", there=self.there / "sub/name.json")
        self.assertEqual((self.there / "sub/name.json").read_bytes(), self.data)
        self.copy("download", here=self.folder / "back.json", there=self.there / "sub/name.json")
        self.assertEqual((self.folder / "back.json").read_bytes(), self.data)
        self.assertIn("exec -i data-0 --container data -- sh -c", (self.folder / "calls").read_text(encoding="utf-8"))

    def test_what_is_not_there(self):
        self.assertIn("no such file or folder", self.copy("upload", code=66))
        self.assertIn("no such file or folder in pod data-0", self.copy("download", code=66))
        self.here.mkdir()
        self.assertIn("there is no file in it", self.copy("upload", code=66))

    def test_a_pod_that_lies_writes_nothing_outside(self):
        self.there.mkdir()
        (self.there / "a").write_text("x", encoding="utf-8")
        outside = self.folder / "outside"
        outside.write_text("mine", encoding="utf-8")
        run = f"x[$(touch {self.folder}/run)]"
        digest = "0" * 64
        for lie in (f"{digest} 1 ../outside", f"{digest} 1 {outside}", f"{digest} 1 a/../../outside", f"{digest} 1 .."):
            self.assertIn("names a file outside", self.copy("download", code=65, LIE=lie))
        for lie in (f"{digest} {run} b", f"{run} 1 b", f"{digest} 1{'0' * 20} b"):
            self.assertIn("no hash and size", self.copy("download", code=65, LIE=lie))
        self.assertIn("more than the file", self.copy("download", there=self.there / "a", here=self.folder / "b", code=65, LIE=f"{digest} 1 c"))
        self.assertEqual(outside.read_text(encoding="utf-8"), "mine")
        self.assertFalse((self.folder / "run").exists())
        self.assertEqual(set(self.files(self.here)), {"a"})

    def test_links_here_are_not_written_through(self):
        self.write(self.there)
        outside = self.folder / "outside"
        outside.mkdir()
        (self.here / "inside").mkdir(parents=True)
        (self.here / "a b").symlink_to(outside)
        self.assertIn("a link leads out of", self.copy("download", code=65))
        (self.here / "a b").unlink()
        (self.here / "a b").symlink_to(self.folder / "nowhere")
        self.assertIn("a link leads out of", self.copy("download", code=65))
        (self.here / "a b").unlink()
        (self.here / "empty.part").symlink_to(outside / "empty")
        self.assertIn("empty.part is a link", self.copy("download", code=65))
        (self.here / "empty.part").unlink()
        self.assertEqual(self.files(outside), {})
        shutil.rmtree(self.here / "a b")
        (self.here / "a b").symlink_to("inside")
        self.copy("download")
        self.assertEqual((self.here / "inside/big file").read_bytes(), self.data)

    def test_a_link_as_the_folder_itself_is_followed(self):
        self.write(self.there)
        (self.folder / "real").mkdir()
        self.here.symlink_to(self.folder / "real")
        self.copy("download")
        self.assertEqual((self.folder / "real/a b/big file").read_bytes(), self.data)

    def test_usage(self):
        self.here.write_bytes(b"x")
        self.assertIn("give an absolute path", self.copy("upload", there="relative", code=64))
        self.assertIn("copy.sh upload", self.copy("sideways", code=64))


if __name__ == "__main__":
    unittest.main()
