# bash completion for lockstepctl. It needs nothing but bash itself.

__lockstepctl_complete() {
	local line=${COMP_LINE:0:COMP_POINT} directive=4 reply lead word
	local -a words replies=()
	COMPREPLY=()
	read -ra words <<<"$line" # no name has white space in it
	[[ $line == *[[:space:]] ]] && words+=("")
	word=${words[-1]}
	while IFS= read -r reply; do
		if [[ $reply =~ ^:[0-9]+$ ]]; then
			directive=${reply:1}
		else
			replies+=("$reply")
		fi
	done < <("${words[0]/#\~/$HOME}" __complete "${words[@]:1}" 2>/dev/null)
	((directive & 1)) && return # it failed
	((directive & 2)) && compopt -o nospace
	((directive & 4)) && compopt +o default # what is no name is no file either

	# What bash is to replace begins after the last character that breaks words.
	lead=
	[[ $COMP_WORDBREAKS == *[:=]* && $word == *[:=]* ]] && lead=${word%"${word##*[:=]}"}
	for reply in "${replies[@]}"; do
		__lockstepctl_offer "${reply%%$'\t'*}" "$reply"
	done
}

# __lockstepctl_offer adds a word. In a list for people to read, and nowhere
# else, it comes with what it is.
__lockstepctl_offer() {
	local text=${2#"$1"}
	text=${text#$'\t'}
	text=${text:0:$((${COLUMNS:-80} - 20))}
	if [[ -n $text ]] && ((${#replies[@]} > 1 && (COMP_TYPE == 9 || COMP_TYPE == 63))); then
		COMPREPLY+=("$(printf '%-14s (%s)' "${1#"$lead"}" "$text")")
	else
		COMPREPLY+=("${1#"$lead"}")
	fi
}

complete -o default -F __lockstepctl_complete lockstepctl
