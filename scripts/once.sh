# For scripts to source: what has passed with the same files need not run again.

# once NAME COMMAND FILE...: runs the command, unless it has passed before with the same content of the files and folders.
once() {
    local name="$1" command="$2" cache="${XDG_CACHE_HOME:-$HOME/.cache}/accordion" content
    shift 2
    content="$(find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)"
    if [ "$(cat "$cache/passed-$name" 2>/dev/null)" = "$content" ]; then
        echo "$name: has passed with these files before"
        return
    fi
    echo "$name"
    "$command"
    mkdir -p "$cache"
    # Last, so that what fails or is broken off runs again.
    echo "$content" >"$cache/passed-$name"
}
