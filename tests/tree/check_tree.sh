#!/usr/bin/env bash
# Rules that hold for the source tree as a whole: `check_tree.sh RULE SOURCE_DIR`. Prints every offence; fails if there is one.
set -euo pipefail
rule=$1
cd "$2"
offences=0
offend() {
  echo "$1"
  offences=$((offences + 1))
}

sources() { find src tests bench -type f \( -name '*.cc' -o -name '*.h' \) | sort; }
texts() {
  find . -type f -not -path './build/*' -not -path './.git' -not -path './.git/*' -not -path './tests/corpus/*' \
    -not -name '*.qcow2' -not -name '*.bin' | sort
}
pages() { find . -name '*.md' -not -path './build/*' | sort; }

# Which modules may a file of src/MODULE include? Itself and what its CMake target reaches (docs/architecture.md).
reach() {
  case $1 in
    base) echo 'base' ;;
    archive) echo 'base archive' ;;
    io) echo 'base io' ;;
    check) echo 'base io check' ;;
    crypto) echo 'base io crypto' ;;
    qcow2) echo 'base io crypto qcow2' ;;
    image) echo 'base io crypto qcow2 image' ;;
    nbd) echo 'base io crypto qcow2 image nbd' ;;
    guestfs) echo 'base archive guestfs' ;;
    domain) echo 'base domain' ;;
    store) echo 'base io crypto qcow2 domain store' ;;
    disk) echo 'base io crypto qcow2 image domain store disk' ;;
    host) echo 'base io crypto qcow2 image domain store disk host' ;;
    libvirt) echo 'base io crypto qcow2 image domain store disk host libvirt' ;;
    operation) echo 'base io check crypto qcow2 image domain store disk host inspect operation' ;;
    inspect) echo 'base io check crypto qcow2 image domain store disk host inspect' ;;
    transfer) echo 'base archive io check crypto qcow2 image domain store disk host inspect operation transfer' ;;
    cli) echo 'base archive io check crypto qcow2 image nbd guestfs domain store disk host libvirt operation transfer inspect cli' ;;
    *) echo '' ;;
  esac
}

case $rule in
  file_length)
    while read -r file; do
      lines=$(wc -l <"$file")
      [ "$lines" -le 600 ] || offend "$file: $lines lines; more than 600 is two files"
    done < <(sources)
    ;;
  module_direction)
    for folder in src/*/; do
      module=$(basename "$folder")
      allowed=$(reach "$module")
      [ -n "$allowed" ] || offend "src/$module: a module that docs/architecture.md and this check do not know"
      while IFS=: read -r file line text; do
        included=$(sed -E 's|^[[:space:]]*#include "([a-z0-9_]+)/.*|\1|' <<<"$text")
        if [[ $included == support && $file == *_test.cc ]]; then continue; fi  # tests/support
        case " $allowed " in
          *" $included "*) ;;
          *) offend "$file:$line: src/$module must not include \"$included/…\"; it may reach: $allowed" ;;
        esac
      done < <(grep -rnE '^[[:space:]]*#include "[a-z0-9_]+/' "$folder" --include='*.cc' --include='*.h' || true)
    done
    ;;
  printing)
    # Nothing below cli prints, exits or reads the environment. CHECK's last words are the exception. Tests may.
    while IFS=: read -r file line text; do
      offend "$file:$line: only src/cli prints, exits or reads the environment: $text"
    done < <(grep -rnE 'std::(cout|cerr|exit|getenv)\b|(^|[^a-z_:.>])(printf|puts|exit|getenv|secure_getenv)\(' src \
      --include='*.cc' --include='*.h' | grep -vE '^src/cli/|_test\.cc:|^src/base/result\.cc:' || true)
    ;;
  machine_paths)
    # A path of the machine somebody works on has no meaning on another one.
    # The pattern is put together here so that this file does not match it.
    slash=/
    pattern="(^|[^A-Za-z0-9_.{}\$/-])(${slash}work/|${slash}root/|${slash}home/(runner|work|build)|${PWD//./\\.}/)"
    while IFS=: read -r file line text; do
      offend "$file:$line: looks like a path of one machine: $text"
    done < <(texts | xargs -d '\n' grep -nIE "$pattern" || true)
    ;;
  links)
    # Every relative link of a page leads to a file, and its #anchor to a heading.
    anchors() { sed -nE 's/^#+ +(.*)$/\1/p' "$1" | tr '[:upper:]' '[:lower:]' | sed -E 's/[^a-z0-9 _-]//g; s/ /-/g'; }
    while read -r page; do
      while IFS= read -r target; do
        case $target in http://* | https://* | mailto:*) continue ;; esac
        file=${target%%#*}
        anchor=''
        case $target in *'#'*) anchor=${target#*#} ;; esac
        path=$page
        [ -z "$file" ] || path=$(dirname "$page")/$file
        if [ ! -e "$path" ]; then
          offend "$page: the link to $target leads nowhere"
        elif [ -n "$anchor" ] && ! anchors "$path" | grep -qxF -- "$anchor"; then
          offend "$page: the link to $target names a heading that is not there"
        fi
      done < <(sed -E '/^(```|    )/d' "$page" | grep -oE '\]\([^) ]+\)' | sed -E 's/^\]\((.*)\)$/\1/' || true)
    done < <(pages)
    # And every page that a source, script or message names is there.
    while IFS=: read -r file line name; do
      [ -e "$name" ] || offend "$file:$line: names $name, which is not there"
    done < <(texts | xargs -d '\n' grep -noIE 'docs/[a-z0-9_/-]+\.md' || true)
    ;;
  threat_model)
    # Every test that the table names is there: `Suite`, `Suite.Test`, or `hostile/IMAGE`.
    page=docs/threat-model.md
    while read -r name; do
      case $name in
        hostile/*)
          [ -e "tests/corpus/$name" ] || offend "$page: there is no image $name"
          ;;
        *.*)
          grep -rqE "^TEST(_F|_P)?\(${name%.*}, ${name#*.}\)" src tests --include='*_test.cc' ||
            offend "$page: there is no test $name"
          ;;
        *)
          grep -rqE "^TEST(_F|_P)?\($name, " src tests --include='*_test.cc' || offend "$page: there is no suite $name"
          ;;
      esac
    done < <(sed -nE 's/^\|.*\|([^|]+)\| *$/\1/p' "$page" |
      grep -oE '`(hostile/[a-z0-9_]+|[A-Z][A-Za-z0-9]+(\.[A-Z][A-Za-z0-9]+)?)`' | tr -d '`' | sort -u)
    ;;
  *)
    echo "no such rule: $rule" >&2
    exit 2
    ;;
esac

if [ "$offences" -gt 0 ]; then
  echo "$offences offences against $rule"
  exit 1
fi
