{{- define "fettle.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/*
Name of the release's objects. At most 36 characters, so that what is made of it stays within a host name's 63:
<fullname>-<8 of a hash>-node-0-<index>-<5 random>, the pods of a JobSet, which refuses longer ones. A release's name may
hold dots and begin with a digit, a host's may not. What had to be changed gets 6 characters of the whole name's hash, since
another release's name may become the same otherwise.
*/}}
{{- define "fettle.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- end -}}
{{- $fit := replace "." "-" $name | trimSuffix "-" -}}
{{- if regexMatch "^[0-9]" $fit -}}{{- $fit = printf "r%s" $fit -}}{{- end -}}
{{- if or (ne $fit $name) (gt (len $fit) 36) -}}
{{- $fit = printf "%s-%s" ($fit | trunc 29 | trimSuffix "-") (sha256sum $name | trunc 6) -}}
{{- end -}}
{{- $fit -}}
{{- end -}}

{{/*
Name of the Job. What a Job runs cannot be changed, so its name holds a hash of that: an upgrade which changes it makes
a new Job, which continues the run, and one which does not leaves the Job alone.
*/}}
{{- define "fettle.jobName" -}}
{{- $spec := include "fettle.jobSpec" (dict "root" . "job" "") -}}
{{- printf "%s-%s" (include "fettle.fullname" .) (sha256sum (printf "%s %v %s" .Values.kind .Values.run $spec) | trunc 8) -}}
{{- end -}}

{{- define "fettle.claimName" -}}
{{- default (include "fettle.fullname" .) .Values.storage.existingClaim -}}
{{- end -}}

{{- define "fettle.dataPod" -}}
{{- include "fettle.fullname" . }}-data-0
{{- end -}}

{{- define "fettle.tokenSecret" -}}
{{- if .Values.hub.existingSecret.name -}}{{ .Values.hub.existingSecret.name }}
{{- else if trim .Values.hub.token -}}{{ include "fettle.fullname" . }}-hub
{{- end -}}
{{- end -}}

{{/* The main container's name, as each kind demands it. */}}
{{- define "fettle.containerName" -}}
{{- get (dict "Job" "train" "PyTorchJob" "pytorch" "TrainJob" "node") .Values.kind -}}
{{- end -}}

{{- define "fettle.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}
{{- else -}}{{ .repository }}:{{ default (printf "%s-%s" $.Chart.AppVersion $.Values.device) .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "fettle.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fettle.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of objects. Pods have the selector labels only: a new version of the chart alone is no new run. */}}
{{- define "fettle.labels" -}}
{{ include "fettle.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}
