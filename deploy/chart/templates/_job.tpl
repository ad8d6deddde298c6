{{/*
What of a Job's spec cannot be changed later. Takes root and job.

Several pods restart all together without an operator: when one is lost, the others find out within seconds (they exit
69 after `peer_timeout`), so every index fails once, waits the same 10, 20, 40 … seconds, and all resume from the same
checkpoint. That is why failures are counted for each index: counted together, one incident of 8 pods would use up 8
failures and make the delay double 8 times. The first index to run out of attempts ends the Job.
*/}}
{{- define "fettle.jobSpec" -}}
{{- $values := .root.Values -}}
{{- if or (gt (int $values.nodes) 1) (eq $values.kind "TrainJob") -}}
completionMode: Indexed
completions: {{ int $values.nodes }}
parallelism: {{ int $values.nodes }}
backoffLimitPerIndex: {{ int $values.backoffLimit }}
maxFailedIndexes: 0
{{- else -}}
backoffLimit: {{ int $values.backoffLimit }}
{{- end }}
# A replacement starts when the pod before it has ended, and saved its state.
podReplacementPolicy: Failed
podFailurePolicy:
  rules:
    # Evicted, preempted, drained, or the node is gone: no fault of the run.
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    # Stopped by a signal, with the state saved.
    - action: Ignore
      onExitCodes:
        operator: In
        values: [75]
    # Mistakes of the user: options, data, missing input, divergence, permission, configuration. Of any container.
    - action: FailJob
      onExitCodes:
        operator: In
        values: [64, 65, 66, 76, 77, 78]
    {{- if $values.check.enabled }}
    # The run is planned to need more memory than there is.
    - action: FailJob
      onExitCodes:
        containerName: check
        operator: In
        values: [71]
    {{- end }}
    # All others (a lost peer, the hub, no memory, I/O, a bug) count towards the limit.
template:
  {{- include "fettle.podTemplate" . | nindent 2 }}
{{- end -}}

{{- define "fettle.jobLabels" -}}
{{ include "fettle.labels" . }}
app.kubernetes.io/component: train
{{- with .Values.queueName }}
kueue.x-k8s.io/queue-name: {{ . }}
{{- end }}
{{- with .Values.jobLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
What may be changed while it runs. `suspend` is left out unless asked for: Kueue suspends a run itself until it is its
turn, and must not be overruled.
*/}}
{{- define "fettle.runPolicy" -}}
{{- $policy := dict -}}
{{- if .Values.suspend -}}{{- $_ := set $policy "suspend" true -}}{{- end -}}
{{- range $key := list "activeDeadlineSeconds" "ttlSecondsAfterFinished" -}}
{{- $value := index $.Values $key -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $policy $key (int $value) -}}{{- end -}}
{{- end -}}
{{- if $policy -}}{{ toYaml $policy }}{{- end -}}
{{- end -}}
